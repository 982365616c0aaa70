"""What an estimator's body is given, asks for, and is answered.

A body is a generator: it yields a :class:`Round`, points that it wants values of, is
sent an :class:`Answer`, and returns the estimate. Who answers is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zojax import weights
from zojax._checks import check_flag, check_number, check_spreading
from zojax._directions import Directions
from zojax._evaluation import ONE_SIDE
from zojax._keys import key_data
from zojax._numerics import Number, PyTree
from zojax.perturbations._sampler import Sampler, sampler_at


class Settings(NamedTuple):
    """What all estimators take, checked."""

    key: jax.Array  # uint32[2], raw words
    smoothing: Number
    clip: Number | None
    shaping: Callable[[jax.Array], jax.Array] | None
    chunk_size: int | None
    axis_name: str | None
    has_aux: bool
    aux_like: PyTree


def check_settings(
    key: jax.Array | int,
    smoothing: Number,
    clip: Number | None,
    shaping: Callable[[jax.Array], jax.Array] | None,
    chunk_size: int | None,
    axis_name: str | None,
    has_aux: bool,
    aux_like: PyTree,
    *,
    asks_params: bool,
) -> Settings:
    """Raises for a setting out of its range."""
    check_number("smoothing", smoothing, 0.0)
    if clip is not None:
        check_number("clip", clip, 0.0)
    if shaping is not None and not callable(shaping):
        raise ValueError(
            "shaping must be a function of the values f[K, P] that returns as many, or"
            f" None, got {shaping!r}"
        )
    if shaping is not None and asks_params:
        raise ValueError(
            "shaping must be None for an estimate that compares with f(params), which"
            " has no place among shaped values: take central differences, or a baseline"
            f" of the step's own values; got {shaping!r}"
        )
    check_spreading(chunk_size, axis_name)
    check_flag("has_aux", has_aux)
    if aux_like is not None and not has_aux:
        raise ValueError("aux_like needs has_aux=True, got has_aux=False")
    return Settings(
        key_data(key),
        smoothing,
        clip,
        shaping,
        chunk_size,
        axis_name,
        has_aux,
        aux_like,
    )


def shaped(values: jax.Array, settings: Settings) -> jax.Array:
    """The values that weights are made of; what was not finite stays so."""
    if settings.shaping is None:
        return values
    shaped = jnp.asarray(settings.shaping(values))
    if shaped.shape != values.shape:
        raise ValueError(
            f"shaping must return values of the shape {values.shape}, got"
            f" {shaped.shape}"
        )
    return jnp.where(jnp.isfinite(values), shaped.astype(values.dtype), jnp.nan)


def within(
    bound: Number | None, step_weights: jax.Array, values: jax.Array
) -> jax.Array:
    """Weights that are derivatives over their number, within a bound of derivatives."""
    if bound is None:
        return step_weights
    num_finite = jnp.isfinite(values).all(axis=1).sum()
    return weights.clip(step_weights, jnp.asarray(bound), num_finite)


class Round(NamedTuple):
    """Points theta + mu s_p v_k, and first theta itself with ``asks_params``.

    With ``weigh``, (values f[K, P], f(theta) or None) -> weights f[..., K], the answer
    has the weighted sum too.
    """

    directions: Directions
    smoothing: jax.Array
    sides: tuple[float, ...] = ONE_SIDE
    asks_params: bool = False
    weigh: Callable[[jax.Array, jax.Array | None], jax.Array] | None = None


class Answer(NamedTuple):
    """Values of a round, shaped; f(theta) if asked; the sum if they were weighed."""

    values: jax.Array
    at_params: jax.Array | None
    sums: PyTree


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
        return Directions(
            sampler_at(sampler, self.state.key, self.state.count),
            self.key if key is None else key,
            num_directions,
            self.settings.chunk_size,
            self.settings.axis_name,
        )

    def clipped(self, step_weights: jax.Array, values: jax.Array) -> jax.Array:
        """Weights of differences, within the bound of the step."""
        return within(self.bound, step_weights, values)


# The estimate, and the fields of the state that it changes.
Body = Callable[[Step], Generator[Round, Answer, tuple[PyTree, dict[str, Any]]]]
