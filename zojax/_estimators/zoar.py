"""ZoAR: averaged baseline and query reuse over the last steps."""

import dataclasses

import jax
import jax.numpy as jnp

from zojax import weights
from zojax._checks import check_flag, check_int, check_option
from zojax._directions import Directions, direction_like
from zojax._estimators.differences import check_zero_sum
from zojax._estimators.rounds import Round, Settings, Shaping
from zojax._estimators.step import Estimator, estimator
from zojax._estimators.zoar_history import (
    ZoarState,
    enter,
    sum_replayed,
    sum_stored,
)
from zojax._evaluation import BOTH_SIDES, ONE_SIDE
from zojax._numerics import Number, PyTree, number_at, value_dtype
from zojax.perturbations import Sampler, gaussian

STORAGES = ("sums", "replay")


def zoar(
    smoothing: Number,
    num_directions: int,
    *,
    key: jax.Array | int,
    history_size: int = 5,
    sampler: Sampler | None = None,
    storage: str = "sums",
    symmetric: bool = False,
    leave_one_out: bool = False,
    clip: Number | None = None,
    shaping: Shaping | None = None,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
    aux_like: PyTree = None,
) -> Estimator:
    """Averages (y - b) u / mu over the queries of this step and the last N.

    History H: the pairs (u, y = f(theta_s + mu_s u)) of this step and of the last N,
    M pairs in all, each at its own theta_s; b = mean of y over H;

        g = (1/M) sum_H (y - b) / mu_s u.

    With S_n = sum_k (y_nk - m_n) u_nk / mu_n, T_n = sum_k u_nk / mu_n and m_n the mean
    of record n this is g = (1/M) sum_n [S_n + (m_n - b) T_n]: 2 (N + 1) vectors,
    whatever K is, or none where the directions are replayed from their keys. Values are
    stored less an anchor, so that a large offset of f does no harm. At the start, means
    run over what is there. K queries a step (2K if symmetric), none at params.

    Since b spans steps, the change of f over the window enters divided by mu: with a
    history keep the steps small against mu (N lr |grad f| < mu for plain SGD), or
    bounded, as R-AdaZO does.

    Args:
      smoothing: mu > 0, in units of params, or a schedule; a past step keeps its own.
        The paper finds 0.01 to 0.1 to work.
      num_directions: K >= 1; K >= 2 if history_size is 0 and symmetric is False.
      history_size: N >= 0 steps beside the current one; 0 is the mean baseline alone.
      sampler: gaussian() by default, as in the paper; rademacher() is cheaper and has
        less variance.
      storage: "sums" keeps (S_n, T_n), 2 (N + 1) vectors; "replay" keeps their 2K
        weights a step and draws the N K past directions again: the same estimate to
        rounding.
      symmetric: query pairs theta +- mu u; K directions, 2K queries.
      leave_one_out: multiply by M/(M-1), which undoes the shrinkage of a mean that
        includes its own samples.
      clip: bound > 0 of the two parts of a directional derivative, (y - m_n) / mu and
        (m_n - b) / mu, or a schedule; None for none.
      key, shaping, chunk_size, axis_name, has_aux, aux_like: as in :func:`two_point`.

    Returns:
      An :class:`zojax.Estimator` whose update looks like params. Query values that are
      not finite never enter the history.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> opt, x = zojax.zoar(0.05, 10, key=0), jnp.ones(4)
      >>> g, _ = opt.update(None, opt.init(x), x, value_fn=lambda x: x @ x)
      >>> bool(g @ x > 0)
      True

    Source: arXiv 2506.14460, Section 4.1, Algorithm 1.
    """
    sampler = gaussian() if sampler is None else sampler
    check_int("history_size", history_size, 0)
    check_option("storage", storage, STORAGES)
    check_flag("symmetric", symmetric)
    check_flag("leave_one_out", leave_one_out)
    V = Directions(sampler, key, num_directions, chunk_size, axis_name)
    if history_size == 0 and not symmetric:
        check_int("num_directions", num_directions, 2, " with history_size=0")
    if leave_one_out:
        check_zero_sum("leave_one_out must be False", sampler)
    sides = BOTH_SIDES if symmetric else ONE_SIDE
    keeps_sums = storage == "sums" and history_size > 0
    keeps_weights = storage == "replay" and history_size > 0
    num_slots = history_size + 1

    def keep(params):
        zeros = lambda *shape: jnp.zeros((num_slots, *shape), value_dtype())
        return {
            "anchors": zeros(),
            "means": zeros(),
            "num_finite": jnp.zeros(num_slots, jnp.int32),
            "sums": direction_like(params, V, (num_slots, 2)) if keeps_sums else None,
            "weights": zeros(2, num_directions) if keeps_weights else None,
        }

    def limits_of(step):
        """How far a past mean may lie from b; a past step keeps its own mu."""
        if step.bound is None:
            return None
        ages = range(num_slots)
        past = [jnp.maximum(step.state.count - age, 0) for age in ages]
        return step.bound * jnp.stack([number_at(smoothing, count) for count in past])

    def body(step):
        state, mu, limits = step.state, step.smoothing, limits_of(step)

        def entered(values):
            at = jnp.asarray(sides, values.dtype)
            record = weights.record(values, at, mu, step.bound)
            return enter(state, record, leave_one_out=leave_one_out, limits=limits)

        def weigh(values, _):
            new = entered(values)
            # Stored sums need S and T apart; otherwise one vector suffices.
            if keeps_sums:
                return new.record.weights
            return jnp.sum(new.coefficients[0][:, None] * new.record.weights, axis=0)

        V = step.directions(sampler, num_directions)
        answer = yield Round(V, mu, sides, weigh=weigh)
        new, estimate, changed = entered(answer.values), answer.sums, {}
        if keeps_sums:
            estimate, changed["sums"] = sum_stored(state, answer.sums, new)
        if keeps_weights:
            of_run = dataclasses.replace(V, sampler=sampler, key=state.key)
            estimate, changed["weights"] = sum_replayed(
                state, step.params, of_run, answer.sums, new
            )
        return estimate, {**new.scalars, **changed}

    settings = Settings(
        key, smoothing, clip, shaping, chunk_size, axis_name, has_aux, aux_like
    )
    return estimator(settings, body, ZoarState, (V,), sides, keep=keep)
