"""DAP: two-point estimates along directionally aligned perturbations."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax import queries, weights
from zojax._checks import check_int, check_number, check_option
from zojax._estimators.log import QueryLog, check_aux_arguments, init_log, update_log
from zojax._keys import key_data, step_key
from zojax._numerics import Number, PyTree, decayed, number_at
from zojax._objective import bind_value_fn, check_params
from zojax.perturbations import aligned, gaussian, sphere
from zojax.perturbations._aligned_replay import (
    combine_replayed,
    replay_aligned,
    replayed_sampler,
)
from zojax.perturbations._sampler import Sampler
from zojax.queries import check_queries, direction_shapes

__all__ = ["DapState", "dap"]

GUIDES = ("rough", "updates", "average")
COMBINATIONS = ("refined", "average")
DIFFERENCES = ("forward", "central")
STORAGES = ("sums", "replay")


class DapState(NamedTuple):
    """State of :func:`dap`."""

    key: jax.Array  # uint32[2], raw words
    count: jax.Array  # i32[]
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
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
    aux_like: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
    """Estimates the gradient along directions aligned with a guide a.

    Each aligned direction satisfies (v . a)^2 = |a|^2 and E[v v^T] = I, see
    :func:`zojax.perturbations.aligned`. The guide is

        rough    the estimate of a first stage with round(split K) directions of
                 ``sampler``; the other directions are aligned with it. The result is
                 the second stage's estimate ("refined"), or the mean over the
                 directions of both stages ("average");
        updates  the incoming updates: a surrogate gradient, or a rough estimator before
                 this one in the chain; all K directions are aligned;
        average  a <- decay a + (1 - decay) g, kept in the state; all K directions are
                 aligned and no query is spent on the guide.

    K + 1 queries for forward differences (K where the caller passes ``value=``), 2K for
    central ones. Where the guide is zero or not finite, directions are isotropic.

    With an estimated guide, "refined" has about twice the full MSE of the plain sphere
    at equal directions; alignment pays where the gradient is sparse and K is well above
    the dimension.

    ``update(updates, state, params, *, value_fn, value=None, **extra_args)`` reads
    updates only with guide="updates".

    Args:
      smoothing: mu > 0, in units of params, or a schedule.
      num_directions: K >= 1 in all; with guide="rough" each stage needs one.
      key: a threefry key (typed or uint32[2]) or an int seed.
      guide: "rough", "updates" or "average".
      split: share of the directions in the rough stage, between 0 and 1.
      combine: "refined" or "average", with guide="rough".
      decay: of the average guide, 0 <= decay < 1, or a schedule.
      sampler: of the rough stage; sphere() by default.
      base: sampler that is projected; gaussian() by default.
      fixed_length: aligned directions of length sqrt(d).
      storage: "sums" holds the guide; "replay", with guide="rough" and lazy(...) as
        sampler and base, keeps the rough stage's weights and draws its directions again
        wherever an aligned one is used: the same estimate to rounding, at the memory of
        two_point with lazy(...), for J + 1 draws a query after J in the rough stage.
      difference: "forward" or "central".
      chunk_size: how many directions live at once; None for all.
      axis_name: mesh axis that the directions are spread over, see
        :func:`zojax.evaluate`; None for none.
      has_aux: whether value_fn returns (value, aux).
      aux_like: arrays or ShapeDtypeStructs shaped like the aux, to keep that of the
        step's first query in ``state.log.aux``; None drops it.

    Returns:
      An optax.GradientTransformationExtraArgs whose update has the structure, shapes
      and dtypes of params.

    Raises:
      ValueError: for a static argument out of its range, or missing updates.

    Example:
      >>> import jax.numpy as jnp, optax, zojax
      >>> opt = optax.chain(zojax.dap(1e-3, 8, key=0), optax.sgd(1e-2))
      >>> x, f = jnp.ones(4), lambda x: jnp.sum(x**2)
      >>> updates, state = opt.update(None, opt.init(x), x, value_fn=f)
      >>> bool(f(optax.apply_updates(x, updates)) < f(x))
      True

    Source: arXiv 2510.19975, Algorithms 1 and 2.
    """
    sampler = sphere() if sampler is None else sampler
    base = gaussian() if base is None else base
    check_number("smoothing", smoothing, 0.0)
    check_option("guide", guide, GUIDES)
    check_option("combine", combine, COMBINATIONS)
    check_option("storage", storage, STORAGES)
    check_option("difference", difference, DIFFERENCES)
    check_number("decay", decay, 0.0, 1.0, low_ok=True)
    check_number("split", split, 0.0, 1.0, schedule=False)
    check_int("num_directions", num_directions, 1)
    num_rough = round(split * num_directions) if guide == "rough" else 0
    num_aligned = num_directions - num_rough
    if guide == "rough" and not 0 < num_rough < num_directions:
        raise ValueError(
            "split must leave a direction to each stage, got"
            f" split={split!r} with num_directions={num_directions}: {num_rough} rough"
            f" and {num_aligned} aligned"
        )
    if storage == "replay":
        _check_replay(guide, sampler=sampler, base=base)
    check_queries(base, num_aligned, chunk_size, axis_name)
    if guide == "rough":
        check_queries(sampler, num_rough, chunk_size, axis_name)
    check_aux_arguments(has_aux, aux_like)
    key = key_data(key)
    uses_base = difference == "forward"
    signs = (1.0,) if uses_base else (1.0, -1.0)

    def init_fn(params):
        check_params(params)
        like = direction_shapes(params, base, num_aligned)
        if guide == "rough":
            rough = direction_shapes(params, sampler, num_rough)
            if jax.tree.structure(rough) != jax.tree.structure(like):
                raise ValueError(
                    "sampler and base must freeze the same leaves, got directions"
                    f" {jax.tree.structure(rough)} and {jax.tree.structure(like)}"
                )
        return DapState(
            key=jnp.array(key),
            count=jnp.zeros((), jnp.int32),
            log=init_log(aux_like, uses_base),
            guide=(
                queries.direction_like(params, base, num_aligned)
                if guide == "average"
                else None
            ),
        )

    def update_fn(updates, state, params=None, *, value_fn, value=None, **extra_args):
        if guide == "updates" and updates is None:
            raise ValueError('updates must not be None with guide="updates"')
        objective = bind_value_fn(value_fn, params, extra_args)
        mu = number_at(smoothing, state.count)
        key_now = step_key(state.key, state.count)
        f_base, base_aux = None, None
        if uses_base:
            f_base, base_aux = queries.base_value(objective, params, value, has_aux)

        def weigh(values):
            if uses_base:
                return weights.forward(values[:, 0], f_base, mu)
            return weights.central(values[:, 0], values[:, 1], mu)

        asking = {
            "signs": signs,
            "chunk_size": chunk_size,
            "axis_name": axis_name,
            "has_aux": has_aux,
        }
        rough_key, aligned_key = (jax.random.fold_in(key_now, i) for i in range(2))

        def stage(stage_sampler, stage_key, count):
            asked = params, stage_sampler, stage_key, count
            return queries.estimate(objective, *asked, mu, weigh, **asking)

        def replayed_stages():
            asked = params, sampler, rough_key, num_rough
            values, aux = queries.evaluate(objective, *asked, mu, **asking)
            rough_weights = weigh(values)
            directions = replay_aligned(
                rough_weights,
                *asked[1:3],
                base,
                aligned_key,
                num_aligned,
                params,
                fixed_length=fixed_length,
            )
            asked = params, replayed_sampler(directions), aligned_key, num_aligned
            refined, _ = queries.evaluate(objective, *asked, mu, **asking)
            share = _rough_share(values, refined) if combine == "average" else 0.0
            estimate = combine_replayed(
                (1 - share) * weigh(refined), share, directions, params
            )
            return estimate, jnp.concatenate([values, refined]), aux

        if storage == "replay":
            estimate, values, aux = replayed_stages()
        else:
            if guide == "rough":
                rough = stage(sampler, rough_key, num_rough)
                a = rough.sums
            else:
                a = updates if guide == "updates" else state.guide
            along_guide = aligned(a, base, fixed_length=fixed_length)
            result = stage(along_guide, aligned_key, num_aligned)
            estimate, values, aux = result
            if guide == "rough":
                values, aux = jnp.concatenate([rough.values, values]), rough.aux
                if combine == "average":
                    share = _rough_share(rough.values, result.values)
                    estimate = jax.tree.map(
                        lambda a, b: (share * a + (1 - share) * b).astype(a.dtype),
                        rough.sums,
                        result.sums,
                    )
        new_guide = state.guide
        if guide == "average":
            new_guide = decayed(state.guide, estimate, number_at(decay, state.count))
        return queries.as_gradient(estimate, params), DapState(
            key=state.key,
            count=optax.safe_increment(state.count),
            log=update_log(
                state.log, values, f_base, aux if base_aux is None else base_aux
            ),
            guide=new_guide,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _rough_share(rough: jax.Array, refined: jax.Array) -> jax.Array:
    """The rough stage's share of the directions that gave a finite difference."""
    number = lambda values: jnp.isfinite(values).all(axis=1).sum()
    n_rough, n_refined = number(rough), number(refined)
    return n_rough / jnp.maximum(n_rough + n_refined, 1)


def _check_replay(guide: str, **samplers: Sampler) -> None:
    if guide != "rough":
        raise ValueError(
            f'storage must be "sums" with guide={guide!r}, got "replay": only a rough'
            " stage has directions to draw again"
        )
    for name, sampler in samplers.items():
        if not hasattr(sampler, "terms"):
            raise ValueError(
                f'{name} must be zojax.perturbations.lazy(...) with storage="replay",'
                f" got {sampler!r}"
            )
