"""The history of ZoAR: N + 1 slots, written in place, and the sum over them."""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from zojax import weights
from zojax._directions import Directions, combine_steps
from zojax._estimators.log import QueryLog
from zojax._numerics import PyTree, contract, on_cpu


class ZoarState(NamedTuple):
    """State of :func:`zojax.zoar`: N + 1 slots, step n in slot n mod (N + 1).

    N = history_size; a step is written to its slot before the slots are read, so that
    a donated history is updated in place.
    """

    key: jax.Array  # uint32[2], raw words
    count: jax.Array  # type: ignore[assignment]  # i32[]
    log: QueryLog
    anchors: jax.Array  # f[N + 1], first finite value of each record
    means: jax.Array  # f[N + 1], mean value of each record, less its anchor
    num_finite: jax.Array  # i32[N + 1], finite values of each record; 0: empty slot
    sums: PyTree  # "sums": leaves f[N + 1, 2, ...], (S, T) of each record; else None
    weights: jax.Array | None  # "replay": f[N + 1, 2, K], of (S, T); else None


class Entered(NamedTuple):
    """A step's record, the scalars of all slots with it, and their coefficients.

    Attributes:
      record: the step's own.
      scalars: the new anchors, means and num_finite of the state.
      coefficients: f[N + 1, 2], of each (S, T), in order of age.
    """

    record: weights.Record
    scalars: dict[str, jax.Array]
    coefficients: jax.Array


def by_age(count: jax.Array, num_slots: int) -> jax.Array:
    """Slots in order of age, this step's first; of slots, the age: its own inverse."""
    return (count % num_slots - jnp.arange(num_slots)) % num_slots


def _store(slots: jax.Array, new: jax.Array, count: jax.Array) -> jax.Array:
    slot = count % slots.shape[0]
    return jax.lax.dynamic_update_index_in_dim(slots, new, slot, 0)


def enter(
    state: ZoarState,
    record: weights.Record,
    *,
    leave_one_out: bool,
    limits: jax.Array | None,
) -> Entered:
    """Enters a step's record; limits f[N + 1] of m_n - b, in order of age."""
    scalars = {
        "anchors": _store(state.anchors, record.anchor, state.count),
        "means": _store(state.means, record.mean, state.count),
        "num_finite": _store(state.num_finite, record.num_finite, state.count),
    }
    order = by_age(state.count, len(state.anchors))
    coefficients = weights.history(
        *(x[order] for x in scalars.values()),
        leave_one_out=leave_one_out,
        limits=limits,
    )
    return Entered(record, scalars, coefficients)


def sum_stored(
    state: ZoarState, sums: PyTree, entered: Entered
) -> tuple[PyTree, PyTree]:
    """(Estimate, slots) with the step's sums written to its slot."""
    write = lambda slots, new: jax.tree.map(
        lambda x, y: _store(x, y, state.count), slots, new
    )
    # An empty record weighs nothing, written or not. On a CPU XLA would copy the
    # history to write a slot that is read right after, unless under a condition; for
    # that a GPU would wait for its host.
    if on_cpu():
        keep = lambda slots, new: slots
        found = entered.record.num_finite > 0
        slots = jax.lax.cond(found, write, keep, state.sums, sums)
    else:
        slots = write(state.sums, sums)
    of_slots = entered.coefficients[by_age(state.count, len(state.anchors))]
    return jax.tree.map(lambda leaf: contract(of_slots, leaf, 2), slots), slots


def sum_replayed(
    state: ZoarState, params: PyTree, V: Directions, sums: PyTree, entered: Entered
) -> tuple[PyTree, jax.Array]:
    """(Estimate, slots) with past directions drawn again; V has the key of the run."""
    num_slots = len(state.anchors)
    slots = _store(cast(jax.Array, state.weights), entered.record.weights, state.count)
    past, ages = by_age(state.count, num_slots)[1:], jnp.arange(1, num_slots)
    replayed = combine_steps(
        jnp.sum(entered.coefficients[1:, :, None] * slots[past], axis=1),
        params,
        V,
        jnp.maximum(state.count - ages, 0),
    )
    return jax.tree.map(jnp.add, sums, replayed), slots
