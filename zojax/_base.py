"""Shared types and checks: keys, the binding of value_fn, numbers and error texts.

The lowest layer: it imports no other module of the library.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any
Number = float | jax.Array | Callable[[jax.Array], jax.Array | float]
"""A number, or an optax schedule: step count -> number."""

KEY_IMPL = "threefry2x32"


class Sampler(Protocol):
    """How a perturbation direction is drawn: one row of a K x d matrix V.

    A sampler reads shapes, dtypes and places of ``params``, never values, and returns a
    pytree like ``params`` with ``None`` at frozen leaves. Rows satisfy E[v v^T] = I,
    and row ``k`` is a pure function of ``(key, k)``, so that it can be drawn again at
    any time.
    """

    def __call__(
        self, key: jax.Array, k: jax.Array | int, num_directions: int, params: PyTree
    ) -> PyTree: ...


# -- keys ------------------------------------------------------------------------------


def canonical_key(key: jax.Array | int) -> jax.Array:
    """Returns a typed key from a typed key, a legacy uint32[2] key or an int seed."""
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return jax.random.key(int(key), impl=KEY_IMPL)
    accepted = f"a single {KEY_IMPL} key (typed or uint32[2]) or an int seed"
    dtype = getattr(key, "dtype", None)
    if dtype is None:
        raise ValueError(f"key must be {accepted}, got {key!r}")
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        # Values of other generators change under vmap, which would break replay.
        if str(jax.random.key_impl(key)) != KEY_IMPL or key.shape != ():
            raise ValueError(
                f"key must be {accepted}, got {jax.random.key_impl(key)} with shape"
                f" {key.shape}"
            )
        return key
    if dtype != jnp.uint32 or key.shape != (2,):
        raise ValueError(f"key must be {accepted}, got {dtype} with shape {key.shape}")
    return jax.random.wrap_key_data(key, impl=KEY_IMPL)


def key_data(key: jax.Array | int) -> jax.Array:
    """Returns the raw uint32[2] words of a key: what a state holds.

    Raw words survive np.asarray, optax.tree.cast and every checkpointer; typed keys
    do not.
    """
    return jax.random.key_data(canonical_key(key))


def step_key(data: jax.Array, count: jax.Array) -> jax.Array:
    """Returns the typed key of step ``count``; any past step can be replayed."""
    return jax.random.fold_in(canonical_key(data), count)


# -- numbers ---------------------------------------------------------------------------


def value_dtype() -> jnp.dtype:
    """Returns the dtype of query values: float32, or float64 under x64."""
    return jnp.result_type(float)


def wide_dtype(dtype: Any) -> jnp.dtype:
    """Returns the dtype to accumulate in: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def zeros_at(x: jax.Array) -> jax.Array:
    """Zeros that lie where x lies, on automatic axes too, where no type says where.

    There a use of x says it; the branch not taken is dropped when compiled.
    """
    return jnp.where(jnp.zeros((), bool), x, jnp.zeros_like(x))


def on_cpu() -> bool:
    """Whether JAX's default backend is a CPU, to choose the faster of equal programs.

    A program for another device than the default computes the same, less quickly.
    """
    return jax.default_backend() == "cpu"


def contract(weights: jax.Array, x: jax.Array, axes: int = 1) -> jax.Array:
    """Contracts the last axes of weights with the first of x, in at least float32."""
    wide = wide_dtype(x.dtype)
    weights, x = weights.astype(wide), x.astype(wide)
    if on_cpu():
        # Full precision: matrix units may round weights and directions to fewer bits.
        return jnp.tensordot(weights, x, axes, precision=jax.lax.Precision.HIGHEST)
    # An accelerator's product would have to read directions from memory; a sum is
    # fused with what draws them.
    scale = weights.reshape(weights.shape + (1,) * (x.ndim - axes))
    return jnp.sum(scale * x, range(weights.ndim - axes, weights.ndim))


def number_at(number: Number, count: jax.Array) -> jax.Array:
    """Evaluates a number or schedule at a step count, in the dtype of query values."""
    return jnp.asarray(number(count) if callable(number) else number, value_dtype())


def is_none(x: Any) -> bool:
    return x is None


def tree_dot(a: PyTree, b: PyTree) -> jax.Array:
    """Inner product over the whole tree, in at least float32."""

    def leaf_dot(x: jax.Array, y: jax.Array) -> jax.Array:
        # A plain sum, since matrix units may round products to fewer bits.
        wide = wide_dtype(jnp.result_type(x, y))
        return jnp.sum(x.astype(wide) * y.astype(wide))

    products = jax.tree.leaves(jax.tree.map(leaf_dot, a, b))
    return sum(products, jnp.zeros((), jnp.float32))


def reciprocal(x: jax.Array) -> jax.Array:
    """1/x, and 0 at 0."""
    return jnp.where(x > 0, 1.0 / jnp.where(x > 0, x, 1.0), 0.0)


def scale(tree: PyTree, factor: jax.Array | float) -> PyTree:
    return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), tree)


def normalize(guide: PyTree, like: PyTree) -> tuple[PyTree, jax.Array]:
    """Returns (a/|a|, True), or (0, False) where a is zero or not finite.

    Entries where ``like`` is frozen (None) do not count. Dividing by max|a| first keeps
    the norm within float32 for any guide.
    """
    wide = lambda x: x.astype(wide_dtype(x.dtype))
    kept = jax.tree.map(
        lambda v, a: None if v is None else wide(jnp.asarray(a)),
        like,
        guide,
        is_leaf=is_none,
    )
    peaks = [jnp.max(jnp.abs(a), initial=0) for a in jax.tree.leaves(kept)]
    peak = jnp.max(jnp.stack(peaks)) if peaks else jnp.zeros(())
    usable = jnp.isfinite(peak) & (peak > 0)
    bounded = jax.tree.map(
        lambda a: jnp.where(usable, a / jnp.where(usable, peak, 1).astype(a.dtype), 0),
        kept,
    )
    norm = jnp.sqrt(tree_dot(bounded, bounded))
    return scale(bounded, reciprocal(norm)), usable


def decayed(average: PyTree, new: PyTree, decay: jax.Array) -> PyTree:
    """decay * average + (1 - decay) * new; an entry that would overflow stays."""

    def leaf(a, g):
        moved = (decay * a + (1 - decay) * g).astype(a.dtype)
        return jnp.where(jnp.isfinite(moved), moved, a)

    return jax.tree.map(leaf, average, new)


# -- checks of static arguments --------------------------------------------------------


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float = np.inf,
    *,
    low_ok: bool = False,
    schedule: bool = True,
) -> None:
    """Raises unless low < value < high (low <= value with ``low_ok``).

    Schedules and traced values are not known here and pass.
    """
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
    raise ValueError(f"{name} must be {accepted}, got {value!r}")


def check_int(name: str, value: Any, minimum: int, why: str = "") -> None:
    """Raises unless value is a Python or numpy int >= minimum."""
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_int or value < minimum:
        hint = ""
        if isinstance(value, jax.Array):
            hint = "; under optax.inject_hyperparams name it in static_args"
        raise ValueError(
            f"{name} must be an int >= {minimum}{why}, got {value!r}{hint}"
        )


def check_option(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    """Raises unless value is one of the accepted names."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {accepted}, got {value!r}")


def check_queries(
    sampler: Sampler,
    num_directions: int,
    chunk_size: int | None,
    axis_name: str | None = None,
) -> None:
    """Checks the arguments that every estimator shares."""
    if not callable(sampler):
        raise ValueError(
            "sampler must be a callable (key, k, num_directions, params) -> direction,"
            f" as zojax.perturbations.gaussian() returns, got {sampler!r}"
        )
    check_int("num_directions", num_directions, 1)
    if chunk_size is not None:
        check_int("chunk_size", chunk_size, 1, " or None")
    if axis_name is not None and not isinstance(axis_name, str):
        raise ValueError(
            f"axis_name must be the name of a mesh axis or None, got {axis_name!r}"
        )
    check = getattr(sampler, "check_num_directions", None)
    if check is not None:
        check(num_directions)


# -- objective -------------------------------------------------------------------------


def check_params(params: PyTree) -> None:
    """Raises if params is missing or was masked by an optax wrapper."""
    if params is None:
        raise ValueError(
            "zojax estimators perturb params: call"
            " update(updates, state, params, value_fn=...)"
        )
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(leaf, optax.MaskedNode) for leaf in leaves):
        raise ValueError(
            "params hold optax.MaskedNode: optax.masked and optax.partition hide the"
            " other leaves from value_fn. Freeze leaves with"
            " sampler=zojax.perturbations.restrict(sampler, mask), and put the"
            " estimator before the wrapper: optax.chain(estimator, optax.masked(...))"
        )


def direction_shapes(params: PyTree, sampler: Sampler, num_directions: int) -> PyTree:
    """Shapes of a direction, in at least float32; raises where params do not fit."""
    like = jax.eval_shape(
        lambda: sampler(
            canonical_key(0), jnp.zeros((), jnp.int32), num_directions, params
        )
    )
    wide = lambda v: jax.ShapeDtypeStruct(v.shape, wide_dtype(v.dtype))
    return jax.tree.map(wide, like)


def bind_value_fn(
    value_fn: Callable[..., Any], params: PyTree, extra_args: Mapping[str, Any]
) -> Callable[[PyTree], Any]:
    """Returns params -> value_fn(params, **the extra args that value_fn names)."""
    check_params(params)
    if not callable(value_fn):
        raise ValueError(f"value_fn must be callable, got {value_fn!r}")
    try:
        signature = inspect.signature(value_fn)
    except (TypeError, ValueError):
        raise ValueError(
            f"value_fn {value_fn!r} has no readable signature: wrap it in a function"
            " that names its arguments"
        ) from None
    kinds = inspect.Parameter
    named = list(signature.parameters.values())
    if any(p.kind is kinds.VAR_KEYWORD for p in named):
        raise ValueError(
            f"value_fn {signature} takes **kwargs, so the data it needs cannot be told"
            " from what other transformations need: name each argument"
        )
    if not named or named[0].kind is kinds.KEYWORD_ONLY:
        raise ValueError(f"value_fn {signature} must take params as first argument")
    data = [p for p in named[1:] if p.kind is not kinds.VAR_POSITIONAL]
    keyword = [p for p in data if p.kind is not kinds.POSITIONAL_ONLY]
    known = {p.name for p in keyword if p.name in extra_args}
    missing = [p.name for p in data if p.default is kinds.empty and p.name not in known]
    if missing:
        raise ValueError(
            f"value_fn {signature} needs {missing}, which update() was not given: pass"
            f" them as keyword arguments; it was given {sorted(extra_args)}"
        )
    kwargs = {name: extra_args[name] for name in known}
    return lambda at: value_fn(at, **kwargs)


# -- what a state says about the last step's queries -----------------------------------


class QueryLog(NamedTuple):
    """What the objective answered, for logging: part of every estimator's state.

    Attributes:
      query_mean: f[], mean of the finite values at the *perturbed* points of the last
        step in which there was one. Not f(params).
      base_value: f[], the last finite f(params), where the estimator uses it (queried
        or passed as ``value=``); None where it does not.
      num_nonfinite: i32[], query values that were NaN or infinite, over all steps.
      aux: the aux of the first query of the last step (at params where the estimator
        queries there, else at the first perturbed point); None unless ``aux_like``.
    """

    query_mean: jax.Array
    base_value: jax.Array | None
    num_nonfinite: jax.Array
    aux: PyTree


def init_log(aux_like: PyTree, with_base: bool) -> QueryLog:
    # Each leaf is a buffer of its own: a state may be donated.
    zero = lambda: jnp.zeros((), value_dtype())
    aux = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.result_type(x)), aux_like)
    return QueryLog(
        zero(), zero() if with_base else None, jnp.zeros((), jnp.int32), aux
    )


def update_log(
    log: QueryLog, values: jax.Array, base: jax.Array | None, aux: PyTree
) -> QueryLog:
    """Enters the values [K, P] and the base value of a step."""
    finite = jnp.isfinite(values)
    total = jnp.sum(jnp.where(finite, values / values.size, 0.0))
    mean = total * values.size / jnp.maximum(finite.sum(), 1)
    query_mean = jnp.where(finite.any(), mean, log.query_mean)
    nonfinite = jnp.sum(~finite, dtype=jnp.int32)
    if base is not None:
        nonfinite += jnp.asarray(~jnp.isfinite(base), jnp.int32)
        base = jnp.where(jnp.isfinite(base), base, log.base_value)
    if log.aux is not None:
        check_aux(log.aux, aux)
    return QueryLog(
        query_mean.astype(log.query_mean.dtype),
        base,
        log.num_nonfinite + nonfinite,
        None if log.aux is None else aux,
    )


def check_aux(expected: PyTree, aux: PyTree) -> None:
    """Raises unless the aux of value_fn looks like the ``aux_like`` of the factory."""
    describe = lambda x: (jnp.shape(x), jnp.result_type(x))
    same_tree = jax.tree.structure(expected) == jax.tree.structure(aux)
    if not same_tree or jax.tree.map(describe, expected) != jax.tree.map(describe, aux):
        raise ValueError(
            "aux_like must have the structure, shapes and dtypes of the aux that"
            f" value_fn returns, got {jax.tree.map(describe, expected)} for"
            f" {jax.tree.map(describe, aux)}"
        )


def check_aux_arguments(has_aux: bool, aux_like: PyTree) -> None:
    if aux_like is not None and not has_aux:
        raise ValueError("aux_like needs has_aux=True, got has_aux=False")
