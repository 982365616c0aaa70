"""The objective: which extra args it gets, and what it has to answer."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax._numerics import PyTree, value_dtype


def check_params(params: PyTree) -> None:
    """Raises if params is missing or was masked by an optax wrapper."""
    if params is None:
        call = "call update(updates, state, params, value_fn=...)"
        raise ValueError(f"zojax estimators perturb params: {call}, got params=None")
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(leaf, optax.MaskedNode) for leaf in leaves):
        raise ValueError(
            "params hold optax.MaskedNode: optax.masked and optax.partition hide the"
            " other leaves from value_fn. Freeze leaves with"
            " sampler=zojax.perturbations.restrict(sampler, mask), and put the"
            " estimator before the wrapper: optax.chain(estimator, optax.masked(...))"
        )


class Objective(NamedTuple):
    """A value_fn whose extra args are bound."""

    call: Callable[[PyTree, jax.Array | None], Any]  # (params, query key) -> its result
    takes_key: bool  # whether value_fn names query_key
    has_aux: bool  # whether it returns (value, aux)


RESERVED = ("value", "values")  # update() keeps them for itself


def bind_value_fn(
    value_fn: Callable[..., Any], extra_args: Mapping[str, Any], has_aux: bool
) -> Objective:
    """Binds those extra args that value_fn names; raises where that cannot be told."""
    if not callable(value_fn):
        raise ValueError(f"value_fn must be callable, got {value_fn!r}")
    try:
        signature = inspect.signature(value_fn)
    except (TypeError, ValueError):
        advice = "wrap it in a function that names its arguments"
        found = f"value_fn {value_fn!r} has no readable signature"
        raise ValueError(f"{found}: {advice}") from None
    kinds, named = inspect.Parameter, list(signature.parameters.values())
    if any(p.kind is kinds.VAR_KEYWORD for p in named):
        raise ValueError(
            f"value_fn {signature} takes **kwargs, so the data it needs cannot be told"
            " from what other transformations need: name each argument"
        )
    if not named or named[0].kind is kinds.KEYWORD_ONLY:
        raise ValueError(f"value_fn {signature} must take params as first argument")
    data = [p for p in named[1:] if p.kind is not kinds.VAR_POSITIONAL]
    taken = [p.name for p in data if p.name in RESERVED]
    if taken:
        raise ValueError(
            f"value_fn {signature} names {taken}, which update() keeps for f(params)"
            " (value) and for answers to ask (values): rename the argument"
        )
    keyword = {p.name for p in data if p.kind is not kinds.POSITIONAL_ONLY}
    known = keyword & set(extra_args)
    takes_key = "query_key" in keyword - known
    given = known | ({"query_key"} if takes_key else set())
    missing = [p.name for p in data if p.default is kinds.empty and p.name not in given]
    if missing:
        raise ValueError(
            f"value_fn {signature} needs {missing}, which update() was not given: pass"
            f" them as keyword arguments; it was given {sorted(extra_args)}"
        )
    kwargs = {name: extra_args[name] for name in known}

    def call(at, query_key):
        own = {"query_key": query_key} if takes_key else {}
        return value_fn(at, **kwargs, **own)

    return Objective(call, takes_key, has_aux)


def as_objective(
    value_fn: Callable[..., Any] | Objective, has_aux: bool, *args: Any, **kwargs: Any
) -> Objective:
    """An objective from value_fn(params, *args, **kwargs), which may name query_key."""
    if isinstance(value_fn, Objective):
        return value_fn
    if not callable(value_fn):
        raise ValueError(f"value_fn must be callable, got {value_fn!r}")
    try:
        named = set(inspect.signature(value_fn).parameters)
    except (TypeError, ValueError):  # a builtin, say
        named = set()
    takes_key = "query_key" in named - set(kwargs)

    def call(at, query_key):
        own = {"query_key": query_key} if takes_key else {}
        return value_fn(at, *args, **kwargs, **own)

    return Objective(call, takes_key, has_aux)


def answer_of(result: Any, has_aux: bool) -> tuple[jax.Array, PyTree]:
    """(value, aux) of what value_fn returned, the value in the dtype of values."""
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        accepted = "(value, aux) with has_aux=True"
        raise ValueError(f"value_fn must return {accepted}, got {type(result)}")
    value, aux = result if has_aux else (result, None)
    if isinstance(value, tuple):
        advice = "pass has_aux=True if it returns (value, aux)"
        raise ValueError(f"value_fn must return a scalar, got a tuple: {advice}")
    value = jnp.asarray(value)
    if value.shape != () or jnp.issubdtype(value.dtype, jnp.complexfloating):
        found = f"shape {value.shape} and dtype {value.dtype}"
        raise ValueError(f"value_fn must return a real scalar, got {found}")
    return value.astype(value_dtype()), aux
