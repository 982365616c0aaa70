"""The objective: which extra args it gets, and what it has to answer."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax import _docs as docs
from zojax._checks import check_leaves, described, is_array
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
            " estimator before the wrapper: optax.chain(estimator, optax.masked(...));"
            f" {docs.FROZEN}"
        )
    check_leaves(params)


class Objective(NamedTuple):
    """A value_fn whose extra args are bound."""

    call: Callable[[PyTree, jax.Array | None], Any]  # (params, query key) -> its result
    takes_key: bool  # whether value_fn names query_key
    has_aux: bool  # whether it returns (value, aux)


class Carried(NamedTuple):
    """An aux that the next step needs, which an estimator may not drop."""

    state: Any


# What JAX raises where a traced array is turned into one of numpy, or into a number.
UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


# A model that is called like a function is the first thing that people try.
ONLY_PARAMS = (
    "value_fn gets params, the arrays of a model, and not the model: put it together"
    " in value_fn with nnx.merge, equinox.combine or net.apply"
)


def _explained(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, with an error that names the ways for what JAX cannot trace."""

    def explained(at, query_key):
        try:
            return call(at, query_key)
        except UNTRACEABLE as error:
            first = str(error).splitlines()[0]
            raise ValueError(
                "value_fn turned a traced array into one of numpy, a number or a bool"
                f" ({first}). Use jax.numpy and jax.lax in it; or, for an objective"
                " that is no JAX program, pass zojax.external.as_value_fn(f), which is"
                " jax.pure_callback with all points in one call, or measure the points"
                " of estimator.ask(state, params) and call update(values=...), as"
                f" zojax.external.optimize does; {docs.EXTERNAL}"
            ) from error
        except TypeError as error:
            if "object is not callable" in str(error):
                error.add_note(ONLY_PARAMS)
            raise

    return explained


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
    for p in named:
        if p.kind in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL):
            stars = "**" if p.kind is kinds.VAR_KEYWORD else "*"
            raise ValueError(
                f"value_fn {signature} takes {stars}{p.name}, so the data it needs"
                " cannot be told from what other transformations need: name each"
                " argument (functools.wraps keeps the names of what is wrapped);"
                f" {docs.EXTRA_ARGS}"
            )
    if not named or named[0].kind is kinds.KEYWORD_ONLY:
        raise ValueError(f"value_fn {signature} must take params as first argument")
    data = named[1:]
    taken = [p.name for p in data if p.name in RESERVED]
    if taken:
        raise ValueError(
            f"value_fn {signature} names {taken}, which update() keeps for f(params)"
            " (value) and for answers to ask (values): rename the argument;"
            f" {docs.EXTRA_ARGS}"
        )
    unnamed = [p for p in data if p.kind is kinds.POSITIONAL_ONLY]
    if unnamed:
        raise ValueError(
            f"value_fn {signature} takes {[p.name for p in unnamed]} by position only,"
            " and extra args of update() come by name: put the / after params"
        )
    keyword = {p.name for p in data}
    known = keyword & set(extra_args)
    takes_key = "query_key" in keyword - known
    given = known | ({"query_key"} if takes_key else set())
    missing = [p.name for p in data if p.default is kinds.empty and p.name not in given]
    if missing:
        raise ValueError(
            f"value_fn {signature} needs {missing}, which update() was not given: pass"
            f" them as keyword arguments; it was given {sorted(extra_args)};"
            f" {docs.EXTRA_ARGS}"
        )
    kwargs = {name: extra_args[name] for name in known}

    def call(at, query_key):
        own = {"query_key": query_key} if takes_key else {}
        return value_fn(at, **kwargs, **own)

    return Objective(_explained(call), takes_key, has_aux)


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

    return Objective(_explained(call), takes_key, has_aux)


def answer_of(result: Any, has_aux: bool) -> tuple[jax.Array, PyTree]:
    """(value, aux) of what value_fn returned, the value in the dtype of values."""
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        accepted = "(value, aux) with has_aux=True"
        raise ValueError(f"value_fn must return {accepted}, got {_kind(result)}")
    value: Any
    aux: Any
    value, aux = result if has_aux else (result, None)
    advice = ""
    if isinstance(value, tuple):
        advice = ": pass has_aux=True if it returns (value, aux)"
    elif has_aux and is_array(aux) and jnp.shape(aux) == ():
        advice = ": (value, aux) in this order"
    if not is_array(value):
        accepted = "a real scalar"
        raise ValueError(f"value_fn must return {accepted}, got {_kind(value)}{advice}")
    value = jnp.asarray(value)
    if value.dtype == bool:
        advice = ": cast it to a float, if a loss of 0 and 1 is meant"
    elif value.shape == () and not jnp.issubdtype(value.dtype, jnp.complexfloating):
        return value.astype(value_dtype()), aux
    elif value.shape != ():
        advice = ": take its mean"
    found = f"shape {value.shape} and dtype {value.dtype}{advice}"
    raise ValueError(f"value_fn must return a real scalar, got {found}")


def _kind(x: Any) -> str:
    return described(x) if is_array(x) else f"a {type(x).__name__}"
