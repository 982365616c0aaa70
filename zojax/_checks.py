"""Checks of static arguments: errors that name the argument, the value and the way."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax import _docs as docs


def is_array(x: Any) -> bool:
    """Whether x is a number, or has the shape and dtype of an array of numbers."""
    if isinstance(x, (bool, int, float, complex)):
        return True
    dtype = getattr(x, "dtype", None)
    # A Keras variable names its dtype by a string, and torch has dtypes of its own.
    if not isinstance(dtype, np.dtype) or not hasattr(x, "shape"):
        return False
    return any(jnp.issubdtype(dtype, kind) for kind in (np.number, np.bool_))


def described(x: Any) -> str:
    """What a leaf is, for an error: dtype and shape, or its type."""
    if is_array(x):
        return f"{jnp.result_type(x)}{list(jnp.shape(x))}"
    return f"{type(x).__name__}, {' '.join(repr(x).split()):.80}"


def check_leaves(params: Any) -> None:
    """Raises for a leaf that is no array of numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if is_array(leaf):
            continue
        dtype = getattr(leaf, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
            way = f"pass keys as extra args of update; of a model, {docs.NNX}"
        elif hasattr(leaf, "value"):
            way = "take the array of a variable, its .value"
        else:
            way = (
                "keep what is no array out of params, as"
                " equinox.partition(model, equinox.is_inexact_array) does:"
                f" {docs.EQUINOX}"
            )
        name = f"params{jax.tree_util.keystr(path)}"
        raise ValueError(f"{name} must be an array, got {described(leaf)}: {way}")


def paired(name: str, leading: Any, tree: Any) -> list[tuple[str, Any, Any]]:
    """(Path, leaf, part of tree) for each leaf of ``leading``, None being a leaf.

    Raises where tree has not its structure.
    """
    is_none = lambda x: x is None
    flat: Any = jax.tree_util.tree_flatten_with_path(leading, is_leaf=is_none)
    leaves, structure = flat
    try:
        parts = structure.flatten_up_to(tree)
    except (ValueError, TypeError):
        found = f"{structure} and {jax.tree.structure(tree)}"
        message = f"{name} must be of the structure of params, got {found}"
        raise ValueError(message) from None
    pairs = zip(leaves, parts, strict=True)
    return [(jax.tree_util.keystr(path), leaf, part) for (path, leaf), part in pairs]


def check_like(name: str, tree: Any, like: Any) -> None:
    """Raises unless tree has an array of the same shape wherever like has one.

    None in ``like`` is a frozen leaf, where tree may hold anything.
    """
    for path, wanted, x in paired(name, like, tree):
        if wanted is None:
            continue
        fits = is_array(x) and jnp.shape(x) == jnp.shape(wanted)
        if not fits or jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
            accepted = f"a real array of shape {jnp.shape(wanted)}, as params have"
            raise ValueError(f"{name}{path} must be {accepted}, got {described(x)}")


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float = np.inf,
    *,
    low_ok: bool = False,
    schedule: bool = True,
) -> None:
    """Raises unless low < value < high (low <= value: ``low_ok``), if it is known."""
    if isinstance(value, jax.core.Tracer) or (schedule and callable(value)):
        return
    accepted = f"a number {'>=' if low_ok else '>'} {low:g}"
    accepted += f" and < {high:g}" if high < np.inf else ""
    accepted += ", or a schedule" if schedule else ""
    kinds = (int, float, np.number, np.ndarray, jax.Array)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if is_number and np.ndim(value) == 0:
        number = float(value)
        if (number >= low if low_ok else number > low) and number < high:
            return
    found = f"{value!r}: {docs.NUMBERS}" if callable(value) else repr(value)
    raise ValueError(f"{name} must be {accepted}, got {found}")


def check_int(name: str, value: Any, minimum: int, why: str = "") -> None:
    """Raises unless value is a Python or numpy int >= minimum."""
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_int or value < minimum:
        array = isinstance(value, jax.Array)
        hint = (
            "; under optax.inject_hyperparams name it in static_args, or use"
            f" zojax.inject_hyperparams: {docs.NUMBERS}"
            if array
            else ""
        )
        raise ValueError(
            f"{name} must be an int >= {minimum}{why}, got {value!r}{hint}"
        )


def check_option(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    """Raises unless value is one of the accepted names."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {accepted}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raises unless value is a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_spreading(chunk_size: int | None, axis_name: str | None) -> None:
    """Checks how directions share memory and devices."""
    if chunk_size is not None:
        check_int("chunk_size", chunk_size, 1, " or None")
    if axis_name is not None and not isinstance(axis_name, str):
        accepted = "the name of a mesh axis or None"
        raise ValueError(f"axis_name must be {accepted}, got {axis_name!r}")
