"""Projection of the gradient on the span of a running guide and fresh directions."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zojax._checks import check_int, check_number, check_option
from zojax._directions import (
    Directions,
    combine,
    dimension,
    direction_like,
    map_directions,
)
from zojax._estimators.log import QueryLog
from zojax._estimators.rounds import AT_PARAMS, Round, Settings, Shaping, sides_of
from zojax._estimators.step import Estimator, estimator
from zojax._numerics import Number, PyTree, decayed, normalize, number_at, tree_dot
from zojax.perturbations import Sampler, from_rows, orthogonal


class AlignedProjectionState(NamedTuple):
    """State of :func:`aligned_projection`."""

    key: jax.Array  # uint32[2], raw words
    count: jax.Array  # type: ignore[assignment]  # i32[]
    log: QueryLog
    guide: PyTree  # like params, at least float32; None at frozen leaves


def _led_by(guide: PyTree, fresh: Directions, params: PyTree) -> Sampler:
    """Row 0 is what the guide adds to rows 1..K-1, as long as they: all orthogonal.

    Asked along the guide itself, that part would be a difference of slopes over its
    length: their errors, rounding and curvature, would be blown up where it is short.
    A guide that is unusable, or inside the span of the others, leaves row 0 as it was.
    """
    unit, usable = normalize(guide, guide)
    length = math.sqrt(max(1, sum(leaf.size for leaf in jax.tree.leaves(guide))))
    cosines = map_directions(lambda v: tree_dot(v, unit) / length, params, fresh)
    others = cosines.at[0].set(0)
    inside = combine(others / length, params, fresh)
    added = lambda a, b: a - b.astype(a.dtype)
    led, _ = normalize(jax.tree.map(added, unit, inside), guide)
    usable &= jnp.sum(others**2) < 1 - 1e-6

    def row(key, k, num_directions, params):
        is_guide = (jnp.asarray(k) == 0) & usable
        choose = lambda v, a: jnp.where(is_guide, (length * a).astype(v.dtype), v)
        return jax.tree.map(choose, fresh.sampler(key, k, num_directions, params), led)

    return from_rows(row, design="joint")


def aligned_projection(
    smoothing: Number,
    num_directions: int,
    *,
    key: jax.Array | int,
    decay: Number = 0.9,
    sampler: Sampler | None = None,
    difference: str = "forward",
    clip: Number | None = None,
    shaping: Shaping | None = None,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
    aux_like: PyTree = None,
) -> Estimator:
    """Projects the gradient on a decayed average of past estimates and fresh rows.

    Rows 1..K-1 are orthogonal(), row 0 is the part of the guide a that is orthogonal to
    them, at their length sqrt(d); with P the orthogonal projection on their span,

        g = P grad f    (from K directional differences),
        a <- decay a + (1 - decay) g.

    Biased to the span, which is its point: if c is the squared cosine between guide and
    gradient, that of the estimate is about c + (1 - c) (K - 1) / (d - 1).

    K + 1 queries for forward differences, 2K for central ones. Where the guide is zero,
    not finite or in the span of rows 1..K-1, all K rows are orthogonal().

    Args:
      num_directions: K >= 2, at most the number of trainable entries, if any.
      decay: 0 <= decay < 1, or a schedule; 0.7 to 0.9 suits.
      sampler: of the fresh rows, a design of orthogonal ones: orthogonal() by default,
        restrict(orthogonal(), mask) to freeze leaves.
      difference: "forward" or "central".
      smoothing, key, clip, shaping, chunk_size, axis_name, has_aux, aux_like: as in
        :func:`two_point`.

    Returns:
      An :class:`zojax.Estimator` whose update looks like params.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> opt, x = zojax.aligned_projection(1e-3, 2, key=0), jnp.arange(4.0)
      >>> g, _ = opt.update(None, opt.init(x), x, value_fn=lambda x: x @ x)
      >>> bool(g @ x > 0)
      True

    Source: DAP (arXiv 2510.19975) with past descent directions (arXiv 1910.05268).
    """
    sampler = orthogonal() if sampler is None else sampler
    check_number("decay", decay, 0.0, 1.0, low_ok=True)
    check_option("difference", difference, AT_PARAMS)
    asks_params = difference == "forward"
    check_int("num_directions", num_directions, 2)
    V = Directions(sampler, key, num_directions, chunk_size, axis_name)
    if sampler.design != "orthogonal":
        accepted = (
            "a design of orthogonal directions, as orthogonal(), restricted or not"
        )
        raise ValueError(f"sampler must be {accepted}, got {sampler!r}")
    sides = sides_of(difference)

    def keep(params):
        d = dimension(params, V)
        if 0 < d < num_directions:
            accepted = f"at most the {d} trainable entries"
            raise ValueError(f"num_directions must be {accepted}, got {num_directions}")
        return {"guide": direction_like(params, V)}

    def body(step):
        mu, guide = step.smoothing, step.state.guide
        d = max(1, sum(leaf.size for leaf in jax.tree.leaves(guide)))
        fresh = step.directions(sampler, num_directions)
        V = step.directions(_led_by(guide, fresh, step.params), num_directions)

        def weigh(values, at_params):
            other = at_params if asks_params else values[:, 1]
            slopes = (values[:, 0] - other) / (mu if asks_params else 2 * mu)
            if step.bound is not None:
                slopes = jnp.clip(slopes, -step.bound, step.bound)
            return jnp.where(jnp.isfinite(slopes), slopes, 0) / d

        answer = yield Round(V, mu, sides, asks_params, weigh)
        rate = number_at(decay, step.state.count)
        return answer.sums, {"guide": decayed(guide, answer.sums, rate)}

    settings = Settings(
        key, smoothing, clip, shaping, chunk_size, axis_name, has_aux, aux_like
    )
    return estimator(
        settings,
        body,
        AlignedProjectionState,
        (V,),
        sides,
        asks_params=asks_params,
        keep=keep,
    )
