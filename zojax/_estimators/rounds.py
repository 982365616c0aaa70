"""What an estimator's body asks for, and who answers: an objective, or the caller.

A body is a generator: it yields a :class:`Round`, points that it wants values of, is
sent an :class:`Answer`, and returns the estimate. Who answers is not its business.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zojax import weights
from zojax._checks import check_flag, check_int, check_number, check_spreading
from zojax._directions import Directions, combine, direction_shapes
from zojax._evaluation import (
    BOTH_SIDES,
    ONE_SIDE,
    estimate,
    evaluate,
    key_at_params,
    points,
    query_keys,
    value_at_params,
)
from zojax._numerics import Number, PyTree, is_none, value_dtype
from zojax._objective import Objective
from zojax.perturbations import Sampler
from zojax.perturbations._sampler import sampler_at

Shaping = Callable[[jax.Array], jax.Array]


class Settings(NamedTuple):
    """What all estimators take."""

    key: jax.Array | int
    smoothing: Number
    clip: Number | None
    shaping: Shaping | None
    chunk_size: int | None
    axis_name: str | None
    has_aux: bool
    aux_like: PyTree


def check_settings(settings: Settings, asks_params: bool) -> None:
    """Raises for a setting out of its range."""
    check_number("smoothing", settings.smoothing, 0.0)
    if settings.clip is not None:
        check_number("clip", settings.clip, 0.0)
    if settings.shaping is not None and not callable(settings.shaping):
        accepted = "a function of the values f[K, P] that returns as many, or None"
        raise ValueError(f"shaping must be {accepted}, got {settings.shaping!r}")
    if settings.shaping is not None and asks_params:
        accepted = "None where values are compared with f(params)"
        raise ValueError(f"shaping must be {accepted}, got {settings.shaping!r}")
    check_spreading(settings.chunk_size, settings.axis_name)
    check_flag("has_aux", settings.has_aux)
    if settings.aux_like is not None and not settings.has_aux:
        raise ValueError("aux_like needs has_aux=True, got has_aux=False")


class Round(NamedTuple):
    """Points theta + mu s_p v_k, and theta itself before them with ``asks_params``."""

    directions: Directions
    smoothing: jax.Array
    sides: tuple[float, ...] = ONE_SIDE
    asks_params: bool = False
    # (values f[K, P], f(theta) or None) -> weights f[..., K], to have the sum as well
    weigh: Callable[[jax.Array, jax.Array | None], jax.Array] | None = None


class Answer(NamedTuple):
    """What came back of a round."""

    values: jax.Array  # f[K, P], shaped
    measured: jax.Array  # f[K, P], as they came
    at_params: jax.Array | None  # f[], f(theta), if it was asked
    sums: PyTree = None  # V^T w, if they were weighed
    aux: PyTree = None  # of the first query


class Step(NamedTuple):
    """What a body knows of the step."""

    params: PyTree
    updates: PyTree  # incoming
    state: Any
    settings: Settings
    key: jax.Array
    smoothing: jax.Array
    bound: jax.Array | None  # of a directional derivative

    def directions(
        self, sampler: Sampler, num_directions: int, key: jax.Array | None = None
    ) -> Directions:
        """V of this step, or of one of its stages with a key of its own."""
        now = sampler_at(sampler, self.state.key, self.state.count)
        spread = self.settings.chunk_size, self.settings.axis_name
        key = self.key if key is None else key
        return Directions(now, key, num_directions, *spread)

    def clipped(self, step_weights: jax.Array, values: jax.Array) -> jax.Array:
        """Weights that are derivatives over their number, within the bound."""
        if self.bound is None:
            return step_weights
        num_finite = jnp.isfinite(values).all(axis=1).sum()
        return weights.clip(step_weights, self.bound, num_finite)


# Returns the estimate, and the fields of the state that it changes.
Body = Callable[[Step], Generator[Round, Answer, tuple[PyTree, dict[str, Any]]]]
Respond = Callable[[Round], Answer]


def _shaped(values: jax.Array, shaping: Shaping | None) -> jax.Array:
    """The values that weights are made of; what was not finite stays so."""
    if shaping is None:
        return values
    new = jnp.asarray(shaping(jnp.where(jnp.isfinite(values), values, jnp.nan)))
    if new.shape != values.shape:
        accepted = f"values of shape {values.shape}"
        raise ValueError(f"shaping must return {accepted}, got {new.shape}")
    return jnp.where(jnp.isfinite(values), new.astype(values.dtype), jnp.nan)


def calling(objective: Objective, value: Any, step: Step) -> Respond:
    """Answers by calling the objective; f(theta) may be known."""
    shape = lambda values: _shaped(values, step.settings.shaping)

    def respond(asked):
        V, at_params, first_aux = asked.directions, None, None
        if asked.asks_params:
            found = value_at_params(objective, step.params, value, V.key)
            at_params, first_aux = found
        sums, where = None, (objective, step.params, V, asked.smoothing)
        if asked.weigh is None:
            values, aux = evaluate(*where, sides=asked.sides)
        else:
            weigh = lambda y: asked.weigh(shape(y), at_params)
            sums, values, aux = estimate(*where, weigh, sides=asked.sides)
        aux = aux if first_aux is None else first_aux
        return Answer(shape(values), values, at_params, sums, aux)

    return respond


def telling(values: Sequence[jax.Array], step: Step) -> Respond:
    """Answers with values that were measured elsewhere, round by round."""
    rounds = iter(values)

    def respond(asked):
        at_params, V, flat = None, asked.directions, next(rounds)
        number = V.num_directions * len(asked.sides) + asked.asks_params
        if flat.shape != (number,) or jnp.issubdtype(flat.dtype, jnp.complexfloating):
            accepted = f"{number} real numbers, one for each point of ask"
            found = f"shape {flat.shape} and dtype {flat.dtype}"
            raise ValueError(f"values must be {accepted}, got {found}")
        flat = flat.astype(value_dtype())
        if asked.asks_params:
            at_params, flat = flat[0], flat[1:]
        measured = flat.reshape(V.num_directions, len(asked.sides))
        shaped = _shaped(measured, step.settings.shaping)
        if asked.weigh is None:
            return Answer(shaped, measured, at_params)
        sums = combine(asked.weigh(shaped, at_params), step.params, V)
        return Answer(shaped, measured, at_params, sums)

    return respond


def by_round(values: Any, num_rounds: int) -> tuple[jax.Array, ...]:
    """What was told, as one array for each round."""
    listed = lambda v: isinstance(v, (tuple, list))
    several = listed(values) and all(listed(v) or np.ndim(v) for v in values)
    entries = tuple(values) if several else (values,)
    if len(entries) != num_rounds:
        accepted = f"those of {num_rounds} round(s)"
        raise ValueError(f"values must hold {accepted}, got {len(entries)}")
    try:
        return tuple(jnp.asarray(entry) for entry in entries)
    except (TypeError, ValueError):
        raise ValueError(f"values must be real numbers, got {values!r}") from None


def points_of(asked: Round, params: PyTree) -> PyTree:
    """The points of a round, stacked."""
    found = points(params, asked.directions, asked.smoothing, sides=asked.sides)
    if not asked.asks_params:
        return found
    with_params = lambda p, at: jnp.concatenate([jnp.asarray(p, at.dtype)[None], at])
    return jax.tree.map(with_params, params, found)


class Queries(NamedTuple):
    """What ``Estimator.ask_with_keys`` returns, for a function of one point at a time.

    Attributes:
      points: pytree like params of what ``ask`` returns; None at frozen leaves, of
        which there is no copy.
      keys: u32[n, 2], the words of each point's key: what a value_fn that names
        ``query_key`` gets. Both sides of a direction share one.
    """

    points: PyTree
    keys: jax.Array


def queries_of(asked: Round, params: PyTree) -> Queries:
    """The points of a round without what is frozen, and their keys."""
    V, sides = asked.directions, len(asked.sides)
    moved = direction_shapes(params, V)
    trainable = lambda v, at: None if v is None else at
    at = jax.tree.map(trainable, moved, points_of(asked, params), is_leaf=is_none)
    keys = jax.random.key_data(query_keys(V.key, jnp.arange(V.num_directions)))
    keys = jnp.repeat(keys, sides, axis=0)
    if asked.asks_params:
        own = jax.random.key_data(key_at_params(V.key))
        keys = jnp.concatenate([own[None], keys])
    return Queries(at, keys)


# -- differences of the objective along a direction -----------------------------------

AT_PARAMS = ("forward", "central")
DIFFERENCES = (*AT_PARAMS, "mean", "leave_one_out")


def sides_of(difference: str) -> tuple[float, ...]:
    """The sides of a direction that are asked."""
    return BOTH_SIDES if difference == "central" else ONE_SIDE


def weigher(
    difference: str, step: Step, known: jax.Array | None = None
) -> Callable[[jax.Array, jax.Array | None], jax.Array]:
    """(values f[K, P], f(theta), or that of an earlier round) -> weights f[K]."""
    mu = step.smoothing

    def weigh(values, at_params):
        if difference == "forward":
            at_params = at_params if known is None else known
            found = weights.forward(values[:, 0], at_params, mu)
        elif difference == "central":
            found = weights.central(values[:, 0], values[:, 1], mu)
        elif difference == "mean":
            found = weights.mean_baseline(values[:, 0], mu)
        else:
            found = weights.leave_one_out(values[:, 0], mu)
        return step.clipped(found, values)

    return weigh


def check_baseline(name: str, baseline: str, sampler: Sampler, number: int) -> None:
    """Raises unless a baseline of the step's own values suits its directions."""
    if baseline in ("mean", "leave_one_out", "optimal"):
        check_int("num_directions", number, 2, f" with {name}={baseline!r}")
    if baseline == "leave_one_out":
        check_zero_sum(f'{name} must be "mean"', sampler)


def check_zero_sum(advice: str, sampler: Sampler) -> None:
    """Raises where a mean that includes its own samples needs no correction."""
    if sampler.design == "zero_sum":
        raise ValueError(
            f"{advice} with a design whose directions sum to zero, as simplex(): the"
            f" mean is unbiased there as it stands, got {sampler!r}"
        )
