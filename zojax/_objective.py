"""The objective: which extra args it gets, and what params it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from zojax._numerics import PyTree


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
