"""ZoAR: averaged baseline and query reuse over the last steps."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax import queries, weights
from zojax._checks import check_int, check_number, check_option
from zojax._estimators.log import QueryLog, check_aux_arguments, init_log, update_log
from zojax._keys import key_data, step_key
from zojax._numerics import Number, PyTree, contract, number_at, on_cpu, value_dtype
from zojax._objective import bind_value_fn, check_params
from zojax.perturbations import gaussian
from zojax.perturbations._sampler import Sampler
from zojax.queries import check_queries, direction_shapes

__all__ = ["ZoarState", "zoar"]

STORAGES = ("sums", "replay")


class ZoarState(NamedTuple):
    """State of :func:`zoar`: N + 1 slots, step n in slot n mod (N + 1).

    N = history_size; a step is written to its slot before the slots are read, so that
    a donated history is updated in place.
    """

    key: jax.Array  # uint32[2], raw words
    count: jax.Array  # i32[]
    log: QueryLog
    anchors: jax.Array  # f[N + 1], first finite value of each record
    means: jax.Array  # f[N + 1], mean value of each record, less its anchor
    counts: jax.Array  # i32[N + 1], finite values of each record; 0: empty slot
    sums: PyTree  # "sums": leaves f[N + 1, 2, ...], (S, T) of each record; else None
    rows: jax.Array | None  # "replay": f[N + 1, 2, K], weights of (S, T); else None


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
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
    aux_like: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
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

    ``update(updates, state, params, *, value_fn, **extra_args)`` ignores updates (they
    may be None); value_fn(params, ...) gets those extra args it names.

    Args:
      smoothing: mu > 0, in units of params, or a schedule; a past step keeps its own.
        The paper finds 0.01 to 0.1 to work; bfloat16 weights near 1 need 1e-2, see
        :func:`zojax.check_smoothing`.
      num_directions: K >= 1; K >= 2 if history_size is 0 and symmetric is False.
      key: a threefry key (typed or uint32[2]) or an int seed.
      history_size: N >= 0 steps beside the current one; 0 is the mean baseline alone.
      sampler: a sampler of zojax.perturbations; gaussian() by default, as in the
        paper. rademacher() is cheaper and has less variance.
      storage: "sums" keeps (S_n, T_n), 2 (N + 1) vectors; "replay" keeps their 2K
        weights a step and draws the N K past directions again: the same estimate to
        rounding.
      symmetric: query pairs theta +- mu u; K directions, 2K queries.
      leave_one_out: multiply by M/(M-1), which undoes the shrinkage of a mean that
        includes its own samples.
      chunk_size: how many directions live at once; None for all.
      axis_name: mesh axis that the directions are spread over, see
        :func:`zojax.evaluate`; None for none.
      has_aux: whether value_fn returns (value, aux).
      aux_like: arrays or ShapeDtypeStructs shaped like the aux, to keep that of the
        step's first query in ``state.log.aux``; None drops it.

    Returns:
      An optax.GradientTransformationExtraArgs whose update has the structure, shapes
      and dtypes of params and whose state has fixed shapes. Query values that are not
      finite never enter the history and are counted in ``state.log.num_nonfinite``.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax.numpy as jnp, optax, zojax
      >>> opt = optax.chain(zojax.zoar(0.05, 10, key=0), zojax.radazo(1e-2))
      >>> x, f = jnp.ones(4), lambda x: jnp.sum(x**2)
      >>> state = opt.init(x)
      >>> for _ in range(3):
      ...     updates, state = opt.update(None, state, x, value_fn=f)
      ...     x = optax.apply_updates(x, updates)
      >>> bool(f(x) < 4)
      True

    Source: arXiv 2506.14460, Section 4.1, Algorithm 1.
    """
    sampler = gaussian() if sampler is None else sampler
    check_number("smoothing", smoothing, 0.0)
    check_queries(sampler, num_directions, chunk_size, axis_name)
    check_int("history_size", history_size, 0)
    check_option("storage", storage, STORAGES)
    if history_size == 0 and not symmetric:
        check_int("num_directions", num_directions, 2, " with history_size=0")
    check_aux_arguments(has_aux, aux_like)
    key = key_data(key)
    signs = (1.0, -1.0) if symmetric else (1.0,)
    keeps_sums = storage == "sums" and history_size > 0
    keeps_rows = storage == "replay" and history_size > 0
    num_slots = history_size + 1

    def init_fn(params):
        check_params(params)
        direction_shapes(params, sampler, num_directions)  # fails early
        sums = (
            queries.direction_like(params, sampler, num_directions, (num_slots, 2))
            if keeps_sums
            else None
        )
        zeros = lambda: jnp.zeros(num_slots, value_dtype())
        rows = (
            jnp.zeros((num_slots, 2, num_directions), value_dtype())
            if keeps_rows
            else None
        )
        return ZoarState(
            key=jnp.array(key),
            count=jnp.zeros((), jnp.int32),
            log=init_log(aux_like, with_base=False),
            anchors=zeros(),
            means=zeros(),
            counts=jnp.zeros(num_slots, jnp.int32),
            sums=sums,
            rows=rows,
        )

    def update_fn(updates, state, params=None, *, value_fn, **extra_args):
        del updates
        objective = bind_value_fn(value_fn, params, extra_args)
        mu = number_at(smoothing, state.count)

        slot = state.count % num_slots
        # Slots in order of age, this step's first; of slots, the age: its own inverse.
        by_age = (slot - jnp.arange(num_slots)) % num_slots

        def store(slots, new):
            return jax.lax.dynamic_update_index_in_dim(slots, new, slot, 0)

        def with_step(values):
            """The step's record, the scalars kept, and f[N + 1, 2]: of each (S, T)."""
            record = weights.record(values, jnp.asarray(signs, values.dtype), mu)
            kept = (
                store(state.anchors, record.anchor),
                store(state.means, record.mean),
                store(state.counts, record.count),
            )
            ordered = weights.history(
                *(x[by_age] for x in kept), leave_one_out=leave_one_out
            )
            return record, kept, ordered

        def weigh(values):
            record, _, coefficients = with_step(values)
            # Stored sums need S and T apart; otherwise one vector suffices.
            if keeps_sums:
                return record.rows
            return jnp.sum(coefficients[0][:, None] * record.rows, axis=0)

        result = queries.estimate(
            objective,
            params,
            sampler,
            step_key(state.key, state.count),
            num_directions,
            mu,
            weigh,
            signs=signs,
            chunk_size=chunk_size,
            axis_name=axis_name,
            has_aux=has_aux,
        )
        record, (anchors, means, counts), coefficients = with_step(result.values)
        estimate, sums, rows = result.sums, state.sums, state.rows

        if keeps_sums:
            write = lambda slots, new: jax.tree.map(store, slots, new)
            # An empty record weighs nothing, written or not. On a CPU XLA would copy
            # the history to write a slot that is read right after, unless under a
            # condition; for that a GPU would wait for its host.
            if on_cpu():
                keep = lambda slots, new: slots
                found = record.count > 0
                sums = jax.lax.cond(found, write, keep, state.sums, result.sums)
            else:
                sums = write(state.sums, result.sums)
            by_slot = coefficients[by_age]
            estimate = jax.tree.map(lambda leaf: contract(by_slot, leaf, 2), sums)
        if keeps_rows:
            rows = store(state.rows, record.rows)
            past, ages = by_age[1:], jnp.arange(1, num_slots)
            replayed = queries.combine_steps(
                jnp.sum(coefficients[1:, :, None] * rows[past], axis=1),
                params,
                sampler,
                state.key,
                jnp.maximum(state.count - ages, 0),
                num_directions,
                chunk_size=chunk_size,
                axis_name=axis_name,
            )
            estimate = jax.tree.map(jnp.add, result.sums, replayed)

        return queries.as_gradient(estimate, params), ZoarState(
            key=state.key,
            count=optax.safe_increment(state.count),
            log=update_log(state.log, result.values, None, result.aux),
            anchors=anchors,
            means=means,
            counts=counts,
            sums=sums,
            rows=rows,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
