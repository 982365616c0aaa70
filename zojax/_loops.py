"""Loops: one program where JAX traces, plain Python where it runs each operation.

Outside of jit a ``lax.scan`` over a closure is compiled anew at each call, which takes
seconds, and what was compiled is never freed. A Python loop compiles nothing there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax._numerics import PyTree, by_platform


def tracing() -> bool:
    """Whether operations are recorded now, as under jit, instead of run."""
    zero = np.zeros((), np.float32)
    return isinstance(jax.lax.add(zero, zero), jax.core.Tracer)


def _at(xs: PyTree, i: int) -> PyTree:
    """Element i along the first axis; one small program for all i."""
    index = np.int32(i)
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), xs
    )


def _stacked(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def scan(
    function: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    init: PyTree,
    xs: PyTree,
    **options: Any,
) -> tuple[PyTree, PyTree]:
    """As jax.lax.scan, of options it knows in a program alone (unroll, say)."""
    length = options.pop("length", None)
    if length is None:
        length = len(jax.tree.leaves(xs)[0])
    if tracing() or length == 0:
        return jax.lax.scan(function, init, xs, length=length, **options)
    carry, found = init, []
    order = range(length)
    for i in reversed(order) if options.get("reverse") else order:
        carry, y = function(carry, _at(xs, i))
        found.append(y)
    if options.get("reverse"):
        found.reverse()
    return carry, _stacked(found)


# Up to so many are drawn without a loop; programs grow with each.
FEW_ROWS = 8


def sum_parts(
    part: Callable[[PyTree], PyTree], zeros: PyTree, xs: PyTree, num_rows: int = 1
) -> PyTree:
    """zeros plus the sum of part(x), each of so many rows, over the first axis of xs.

    One part at a time. An accelerator fuses few rows with what draws them and with what
    uses the sum, so that no sum is held; a CPU, and many rows, have a loop with one.
    """

    def sum_in(unroll: bool) -> Callable[..., PyTree]:
        add = lambda sums, x: (jax.tree.map(jnp.add, sums, part(x)), None)
        return lambda zeros, xs: scan(add, zeros, xs, unroll=unroll)[0]

    few = len(jax.tree.leaves(xs)[0]) * num_rows <= FEW_ROWS
    if not (tracing() and few):
        return sum_in(False)(zeros, xs)
    part = jax.jit(part)  # traced once for both programs
    return by_platform(zeros, xs, cpu=sum_in(False), accelerator=sum_in(True))


def map_rows(
    function: Callable[[PyTree], PyTree],
    xs: PyTree,
    batch_size: int = 1,
    *,
    unroll: bool = False,
) -> PyTree:
    """As jax.lax.map: so many of the first axis at once, the batches in turn.

    With ``unroll``, one at a time, a program has no loop for its turns, except a CPU's,
    which would compute again in each what all of them share.
    """
    size = len(jax.tree.leaves(xs)[0])
    if tracing() and unroll and batch_size == 1:
        function = jax.jit(function)  # traced once for both programs
        body = lambda _, x: (None, function(x))
        in_turn = lambda unroll: lambda xs: jax.lax.scan(body, None, xs, unroll=unroll)
        loop, straight = in_turn(False), in_turn(True)
        return by_platform(xs, cpu=loop, accelerator=straight)[1]
    if tracing() or size == 0:
        several = batch_size if batch_size > 1 else None
        return jax.lax.map(function, xs, batch_size=several)
    if batch_size == 1:
        return _stacked([function(_at(xs, i)) for i in range(size)])

    def batch(start):
        some, start = min(batch_size, size - start), np.int32(start)
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, some)
        return jax.vmap(function)(jax.tree.map(cut, xs))

    parts = [batch(start) for start in range(0, size, batch_size)]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
