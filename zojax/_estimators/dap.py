"""DAP: two-point estimates along directionally aligned perturbations."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zojax import _docs as docs
from zojax._checks import check_flag, check_int, check_number, check_option
from zojax._directions import Directions, direction_like
from zojax._estimators import rounds
from zojax._estimators.log import QueryLog
from zojax._estimators.step import Estimator, estimator
from zojax._numerics import Number, PyTree, decayed, number_at
from zojax.perturbations import Sampler, aligned, gaussian, sphere
from zojax.perturbations import _aligned_replay as replay
from zojax.perturbations._sampler import check_holds_rows, check_sampler

GUIDES = ("rough", "updates", "average")
COMBINATIONS = ("refined", "average")
STORAGES = ("sums", "replay")


class DapState(NamedTuple):
    """State of :func:`dap`."""

    key: jax.Array  # uint32[2], raw words
    count: jax.Array  # type: ignore[assignment]  # i32[]
    log: QueryLog
    guide: PyTree  # guide="average": like params, at least float32; else None


def dap(
    smoothing: Number,
    num_directions: int,
    *,
    key: jax.Array | int,
    guide: str = "rough",
    split: float = 0.5,
    combine: str = "refined",
    decay: Number = 0.9,
    sampler: Sampler | None = None,
    base: Sampler | None = None,
    fixed_length: bool = False,
    storage: str = "sums",
    difference: str = "forward",
    clip: Number | None = None,
    shaping: rounds.Shaping | None = None,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
    aux_like: PyTree = None,
) -> Estimator:
    """Estimates the gradient along directions aligned with a guide a.

    Each aligned direction satisfies (v . a)^2 = |a|^2 and E[v v^T] = I, see
    :func:`zojax.perturbations.aligned`. The guide is

        rough    the estimate of a first stage with round(split K) directions of
                 ``sampler``. The result is the second stage's estimate ("refined"), or
                 the mean over the directions of both ("average");
        updates  the incoming updates: a surrogate gradient, or a rough estimator before
                 this one in the chain; all K directions are aligned;
        average  a <- decay a + (1 - decay) g, kept in the state; likewise.

    K + 1 queries for forward differences, 2K for central ones; with guide="rough" in
    two rounds. Where the guide is zero or not finite, directions are isotropic. With an
    estimated guide, "refined" has about twice the full MSE of the plain sphere at equal
    directions; alignment pays where the gradient is sparse and K well above d.

    Args:
      num_directions: K >= 1 in all; with guide="rough" each stage needs one.
      guide: "rough", "updates" or "average".
      split: share of the directions in the rough stage, between 0 and 1.
      combine: "refined" or "average", with guide="rough".
      decay: of the average guide, 0 <= decay < 1, or a schedule.
      sampler: of the rough stage; sphere() by default.
      base: sampler that is projected, whose rows may be held unless they are replayed;
        gaussian() by default.
      fixed_length: aligned directions of length sqrt(d).
      storage: "sums" holds the guide; "replay", with guide="rough" and lazy(...) as
        sampler and base, draws the rough stage's J directions again wherever an aligned
        one is used: the same estimate to rounding, at the memory of two_point with
        lazy(...), for J + 1 draws a query.
      difference: "forward" or "central".
      smoothing, key, clip, shaping, chunk_size, axis_name, has_aux, aux_like: as in
        :func:`two_point`.

    Returns:
      An :class:`zojax.Estimator` whose update looks like params.

    Raises:
      ValueError: for a static argument out of its range, or missing updates.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> opt, x = zojax.dap(1e-3, 8, key=0), jnp.ones(4)
      >>> g, _ = opt.update(None, opt.init(x), x, value_fn=lambda x: x @ x)
      >>> bool(g @ x > 0)
      True

    Source: arXiv 2510.19975, Algorithms 1 and 2.
    """
    sampler = sphere() if sampler is None else sampler
    base = gaussian() if base is None else base
    check_option("guide", guide, GUIDES)
    check_option("combine", combine, COMBINATIONS)
    check_option("storage", storage, STORAGES)
    check_option("difference", difference, rounds.AT_PARAMS)
    check_number("decay", decay, 0.0, 1.0, low_ok=True)
    check_number("split", split, 0.0, 1.0, schedule=False)
    check_flag("fixed_length", fixed_length)
    asks_params = difference == "forward"
    check_int("num_directions", num_directions, 1)
    num_rough = round(split * num_directions) if guide == "rough" else 0
    num_aligned = num_directions - num_rough
    if guide == "rough" and not 0 < num_rough < num_directions:
        left = f"{num_rough} rough and {num_aligned} aligned"
        given = f"split={split!r} with num_directions={num_directions}: {left}"
        raise ValueError(f"split must leave a direction to each stage, got {given}")
    _check_samplers(guide, storage, sampler, base)
    V = Directions(base, key, num_aligned, chunk_size, axis_name)
    sides = rounds.sides_of(difference)

    def keep(params):
        return {"guide": direction_like(params, V) if guide == "average" else None}

    def stage_keys(step):
        return [jax.random.fold_in(step.key, i) for i in range(2)]

    def along(a):
        return aligned(a, base, fixed_length=fixed_length)

    def one_stage(step):
        if guide == "updates" and step.updates is None:
            raise ValueError('updates must not be None with guide="updates"')
        a = step.updates if guide == "updates" else step.state.guide
        V = step.directions(along(a), num_aligned, stage_keys(step)[1])
        weigh = rounds.weigher(difference, step)
        answer = yield rounds.Round(V, step.smoothing, sides, asks_params, weigh)
        if guide == "updates":
            return answer.sums, {}
        rate = number_at(decay, step.state.count)
        return answer.sums, {"guide": decayed(a, answer.sums, rate)}

    def two_stages(step):
        mu, (rough_key, aligned_key) = step.smoothing, stage_keys(step)
        V = step.directions(sampler, num_rough, rough_key)
        weigh = rounds.weigher(difference, step)
        rough = yield rounds.Round(V, mu, sides, asks_params, weigh)
        V = step.directions(along(rough.sums), num_aligned, aligned_key)
        weigh = rounds.weigher(difference, step, rough.at_params)
        refined = yield rounds.Round(V, mu, sides, weigh=weigh)
        if combine == "refined":
            return refined.sums, {}
        share = _rough_share(rough, refined)
        mean = lambda a, b: (share * a + (1 - share) * b).astype(a.dtype)
        return jax.tree.map(mean, rough.sums, refined.sums), {}

    def two_stages_replayed(step):
        mu, (rough_key, aligned_key) = step.smoothing, stage_keys(step)
        V = step.directions(sampler, num_rough, rough_key)
        rough = yield rounds.Round(V, mu, sides, asks_params)
        weigh = rounds.weigher(difference, step, rough.at_params)
        around = replay.replay_aligned(
            weigh(rough.values, None),
            V.sampler,
            rough_key,
            step.directions(base, num_aligned).sampler,
            aligned_key,
            num_aligned,
            step.params,
            fixed_length=fixed_length,
        )
        V = step.directions(replay.replayed_sampler(around), num_aligned, aligned_key)
        refined = yield rounds.Round(V, mu, sides)
        share = _rough_share(rough, refined) if combine == "average" else 0.0
        found = (1 - share) * weigh(refined.values, None)
        return replay.combine_replayed(found, share, around, step.params), {}

    body: rounds.Body = one_stage
    stages: tuple[Directions, ...] = (V,)
    if guide == "rough":
        body = two_stages if storage == "sums" else two_stages_replayed
        stages = (dataclasses.replace(V, sampler=sampler, num_directions=num_rough), V)
    settings = rounds.Settings(
        key, smoothing, clip, shaping, chunk_size, axis_name, has_aux, aux_like
    )
    return estimator(
        settings, body, DapState, stages, sides, asks_params=asks_params, keep=keep
    )


def _rough_share(rough: rounds.Answer, refined: rounds.Answer) -> jax.Array:
    """The rough stage's share of the directions that gave a finite difference."""
    number = lambda answer: jnp.isfinite(answer.values).all(axis=1).sum()
    n_rough, n_refined = number(rough), number(refined)
    return n_rough / jnp.maximum(n_rough + n_refined, 1)


def _check_samplers(guide: str, storage: str, sampler: Sampler, base: Sampler) -> None:
    """Raises unless the samplers suit the storage of the guide."""
    check_sampler("sampler", sampler)
    check_sampler("base", base)
    if storage == "sums":
        check_holds_rows("base", base)
    elif guide != "rough":
        raise ValueError(f'storage must be "sums" with guide={guide!r}, got "replay"')
    for name, given in (("sampler", sampler), ("base", base)):
        if storage == "replay" and given.terms is None:
            accepted = 'zojax.perturbations.lazy(...) with storage="replay"'
            raise ValueError(
                f"{name} must be {accepted}, got {given!r}; {docs.REPLAYED}"
            )
