"""flax.nnx models whose state must survive a step: batch statistics, dropout's counts.

This module is not imported by ``import zojax``, and needs flax.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from zojax._objective import Carried

__all__ = ["SplitLoss", "split_loss"]


class SplitLoss(NamedTuple):
    """What :func:`split_loss` returns.

    Attributes:
      value_fn: (params, model_state, **data) -> (value, new model_state), data being
        the other arguments of the loss.
      params: nnx.State, what an estimator perturbs.
      model_state: what the model changes as it runs: batch statistics, counts of
        random draws. Also the ``aux_like`` of the estimator.
    """

    value_fn: Callable[..., tuple[Any, Carried]]
    params: nnx.State
    model_state: Carried


def split_loss(
    loss: Callable[..., Any], model: nnx.Module, wrt: Any = nnx.Param
) -> SplitLoss:
    """Makes a pure value_fn of a loss that takes an nnx model.

    A model in training mode changes: BatchNorm its statistics, Dropout the count of its
    draws. A closure around the model would throw that away without a word: statistics
    would stay 0, and the mask of dropout the same. Here the state of the step's first
    query comes back as its aux, for the next step; all queries of a step see the same
    state, and so the same mask. An estimator that would drop it raises an error.

    Args:
      loss: (model, **data) -> scalar, with each argument named.
      model: nnx module, in the mode that the loss is to run in.
      wrt: filter of the parameters that are perturbed. What is neither one of them nor
        changed by running (other parameters, keys) stays as it is in model.

    Returns:
      A :class:`SplitLoss`.

    Raises:
      ValueError: for a loss that takes ``*args`` or ``**kwargs``.

    Example:
      >>> import jax, jax.numpy as jnp, optax, zojax
      >>> from flax import nnx
      >>> from zojax.nnx import split_loss
      >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)),
      ...                        nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
      >>> loss = lambda model, x, y: jnp.mean((model(x).sum(1) - y) ** 2)
      >>> value_fn, params, kept = split_loss(loss, model)
      >>> opt = zojax.two_point(1e-2, 4, key=0, has_aux=True, aux_like=kept)
      >>> x, y = jnp.arange(24.0).reshape(8, 3), jnp.ones(8)
      >>> updates, state = opt.update(None, opt.init(params), params,
      ...                             value_fn=value_fn, model_state=kept, x=x, y=y)
      >>> params = optax.apply_updates(params, updates)
      >>> nnx.update(model, params, state.log.aux.state)
      >>> bool((model.layers[1].mean[...] != 0).any())
      True

    Source: none; the contract between flax.nnx and value_fn.
    """
    names = list(inspect.signature(loss).parameters.values())[1:]
    kinds = inspect.Parameter
    for p in names:
        if p.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
            raise ValueError(f"loss must name each argument, got {p} among them")
    changing = nnx.All(nnx.Not(nnx.Param), nnx.Not(nnx.RngKey))
    split: Any = nnx.split
    graph, params, state, fixed = split(model, wrt, changing, ...)

    def value_fn(params, model_state, **data):
        kept = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(kept, model_state.state)
        copy = nnx.merge(graph, params, kept, fixed, copy=True)
        value = loss(copy, **data)
        _, _, new, _ = split(copy, wrt, changing, ...)
        return value, Carried(nnx.to_pure_dict(new))

    own = [kinds(n, kinds.POSITIONAL_OR_KEYWORD) for n in ("params", "model_state")]
    data = [p.replace(kind=kinds.KEYWORD_ONLY) for p in names]
    value_fn.__signature__ = inspect.Signature([*own, *data])  # type: ignore[attr-defined]
    # Plain dicts, since nnx.Optimizer takes the Variables out of what it holds.
    return SplitLoss(value_fn, params, Carried(nnx.to_pure_dict(state)))
