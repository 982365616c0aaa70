"""ZoAR: averaged baseline and query reuse over the last steps."""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from zojax import weights
from zojax._checks import check_flag, check_int, check_option
from zojax._directions import Directions, combine_steps, direction_like
from zojax._estimators.log import QueryLog
from zojax._estimators.rounds import Round, Settings, Shaping, check_zero_sum
from zojax._estimators.step import Estimator, estimator
from zojax._evaluation import BOTH_SIDES, ONE_SIDE
from zojax._loops import tracing
from zojax._numerics import (
    Number,
    PyTree,
    by_platform,
    contract,
    number_at,
    value_dtype,
)
from zojax.perturbations import Sampler, gaussian

STORAGES = ("sums", "replay")


class ZoarState(NamedTuple):
    """State of :func:`zojax.zoar`: N + 1 slots, step n in slot n mod (N + 1).

    A step is written before slots are read, so that a donated history stays in place.
    """

    key: jax.Array  # uint32[2], raw words
    count: jax.Array  # type: ignore[assignment]  # i32[]
    log: QueryLog
    anchors: jax.Array  # f[N + 1], first finite value of each record
    means: jax.Array  # f[N + 1], mean value of each record, less its anchor
    num_finite: jax.Array  # i32[N + 1], finite values of each record; 0: empty slot
    sums: PyTree  # "sums": leaves f[N + 1, 2, ...], (S, T) of each record; else None
    weights: jax.Array | None  # "replay": f[N + 1, 2, K], of (S, T); else None


class _Entered(NamedTuple):
    """A step's record, and what it changes in the weights of a history."""

    record: weights.Record
    scalars: dict[str, jax.Array]  # the new anchors, means and num_finite
    coefficients: jax.Array  # f[N + 1, 2], of each (S, T), in order of age


def _by_age(count: jax.Array, num_slots: int) -> jax.Array:
    """Slots in order of age, this step's first; of slots, the age: its own inverse."""
    return (count % num_slots - jnp.arange(num_slots, dtype=count.dtype)) % num_slots


def _store(slots: jax.Array, new: jax.Array, count: jax.Array) -> jax.Array:
    slot = count % slots.shape[0]
    return jax.lax.dynamic_update_index_in_dim(slots, new, slot, 0)


def _enter(state: ZoarState, record: weights.Record, **options: Any) -> _Entered:
    """Enters a step's record; options are those of weights.history, by age."""
    scalars = {
        "anchors": _store(state.anchors, record.anchor, state.count),
        "means": _store(state.means, record.mean, state.count),
        "num_finite": _store(state.num_finite, record.num_finite, state.count),
    }
    order = _by_age(state.count, len(state.anchors))
    ordered = (x[order] for x in scalars.values())
    return _Entered(record, scalars, weights.history(*ordered, **options))


def _sum_stored(
    state: ZoarState, sums: PyTree, entered: _Entered
) -> tuple[PyTree, PyTree]:
    """(Estimate, slots) with the step's sums written to its slot."""
    store = lambda slots, new: _store(slots, new, state.count)
    write = lambda slots, new: jax.tree.map(store, slots, new)

    def write_any(found, slots, new):
        # An empty record weighs nothing, written or not. On a CPU XLA would copy the
        # history to write a slot that is read right after, unless under a condition;
        # for that a GPU would wait for its host.
        keep = lambda slots, new: slots
        return jax.lax.cond(found, write, keep, slots, new)

    args = entered.record.num_finite > 0, state.sums, sums
    if tracing():
        always = lambda found, slots, new: write(slots, new)
        slots = by_platform(*args, cpu=write_any, accelerator=always)
    else:
        slots = write(*args[1:])
    of_slots = entered.coefficients[_by_age(state.count, len(state.anchors))]
    return jax.tree.map(lambda leaf: contract(of_slots, leaf, 2), slots), slots


def _sum_replayed(
    state: ZoarState, params: PyTree, V: Directions, sums: PyTree, entered: _Entered
) -> tuple[PyTree, jax.Array]:
    """(Estimate, slots) with past directions drawn again; V has the key of the run."""
    num_slots = len(state.anchors)
    slots = _store(cast(jax.Array, state.weights), entered.record.weights, state.count)
    past, ages = _by_age(state.count, num_slots)[1:], jnp.arange(1, num_slots)
    of_steps = jnp.sum(entered.coefficients[1:, :, None] * slots[past], axis=1)
    steps = jnp.maximum(state.count - ages.astype(state.count.dtype), 0)
    replayed = combine_steps(of_steps, params, V, steps)
    return jax.tree.map(jnp.add, sums, replayed), slots


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
    stored less an anchor, so that a large offset of f does no harm. K queries a step
    (2K if symmetric), none at params.

    Since b spans steps, the change of f over the window enters divided by mu: keep the
    steps small against mu (N lr |grad f| < mu for plain SGD), or bounded, as R-AdaZO.

    Args:
      smoothing: mu > 0, in units of params, or a schedule; a past step keeps its own.
        The paper finds 0.01 to 0.1 to work.
      num_directions: K >= 1; K >= 2 if history_size is 0 and symmetric is False.
      history_size: N >= 0 steps beside the current one; 0 is the mean baseline alone.
      sampler: gaussian() by default, as in the paper; rademacher() is cheaper and has
        less variance.
      storage: "sums" keeps (S_n, T_n); "replay" keeps their 2K weights a step and draws
        the N K past directions again: the same estimate to rounding.
      symmetric: query pairs theta +- mu u; K directions, 2K queries.
      leave_one_out: multiply by M/(M-1), so that b does not shrink the estimate.
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
            return _enter(state, record, leave_one_out=leave_one_out, limits=limits)

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
            estimate, changed["sums"] = _sum_stored(state, answer.sums, new)
        if keeps_weights:
            of_run = dataclasses.replace(V, sampler=sampler, key=state.key)
            estimate, changed["weights"] = _sum_replayed(
                state, step.params, of_run, answer.sums, new
            )
        return estimate, {**new.scalars, **changed}

    settings = Settings(
        key, smoothing, clip, shaping, chunk_size, axis_name, has_aux, aux_like
    )
    return estimator(settings, body, ZoarState, (V,), sides, keep=keep)
