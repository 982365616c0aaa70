"""Who answers a round: an objective that is called, or values measured elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zojax._directions import combine
from zojax._estimators.rounds import Answer, Round, Step, shaped
from zojax._evaluation import Estimate, estimate, evaluate, points, value_at_params
from zojax._numerics import PyTree, value_dtype
from zojax._objective import bind_value_fn


class Heard(NamedTuple):
    """What came back of one round, before any shaping."""

    values: jax.Array
    at_params: jax.Array | None
    aux: PyTree


Respond = Callable[[Round], tuple[Answer, Heard]]


def calling(
    value_fn: Callable[..., Any],
    value: Any,
    extra_args: dict[str, Any],
    step: Step,
) -> Respond:
    """Answers by calling the objective."""
    settings = step.settings
    objective = bind_value_fn(value_fn, extra_args, settings.has_aux)

    def respond(asked):
        at_params, first_aux = None, None
        if asked.asks_params:
            found = value_at_params(
                objective, step.params, value, asked.directions.typed_key
            )
            at_params, first_aux = found
        where = step.params, asked.directions, asked.smoothing
        if asked.weigh is None:
            values, aux = evaluate(objective, *where, sides=asked.sides)
            found = Estimate(None, values, aux)
        else:
            weigh = lambda y: asked.weigh(shaped(y, settings), at_params)
            found = estimate(objective, *where, weigh, sides=asked.sides)
        answer = Answer(shaped(found.values, settings), at_params, found.sums)
        aux = found.aux if first_aux is None else first_aux
        return answer, Heard(found.values, at_params, aux)

    return respond


def told(values: Sequence[Any], step: Step) -> Respond:
    """Answers with values that were measured elsewhere, round by round."""
    rounds = iter(values)

    def respond(asked):
        at_params, V = None, asked.directions
        shape = (V.num_directions, len(asked.sides))
        number = shape[0] * shape[1] + asked.asks_params
        flat = jnp.asarray(next(rounds))
        if flat.shape != (number,) or jnp.issubdtype(flat.dtype, jnp.complexfloating):
            raise ValueError(
                f"values must be {number} real numbers, one for each point of ask, got"
                f" shape {flat.shape} and dtype {flat.dtype}"
            )
        flat = flat.astype(value_dtype())
        if asked.asks_params:
            at_params, flat = flat[0], flat[1:]
        heard = Heard(flat.reshape(shape), at_params, None)
        answer = Answer(shaped(heard.values, step.settings), at_params, None)
        if asked.weigh is not None:
            sums = combine(asked.weigh(answer.values, at_params), step.params, V)
            answer = answer._replace(sums=sums)
        return answer, heard

    return respond


def by_round(values: Any, num_rounds: int) -> tuple[jax.Array, ...]:
    """What was told, as one array for each round."""
    several = isinstance(values, (tuple, list)) and all(np.ndim(v) for v in values)
    entries = tuple(values) if several else (values,)
    if len(entries) != num_rounds:
        raise ValueError(
            f"values must hold those of {num_rounds} round(s), got {len(entries)}"
        )
    try:
        return tuple(jnp.asarray(entry) for entry in entries)
    except (TypeError, ValueError):
        raise ValueError(f"values must be real numbers, got {values!r}") from None


def handed_out(asked: Round, params: PyTree) -> PyTree:
    """The points of a round, stacked."""
    found = points(params, asked.directions, asked.smoothing, sides=asked.sides)
    if not asked.asks_params:
        return found
    with_params = lambda p, at: jnp.concatenate([jnp.asarray(p, at.dtype)[None], at])
    return jax.tree.map(with_params, params, found)
