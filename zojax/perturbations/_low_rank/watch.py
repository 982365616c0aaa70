"""What goes into a matrix and what comes out of it, as a function runs.

The function's program is run equation by equation outside of jit, its loops unrolled. A
matrix that is watched carries markers in the place of factors: which one of a stack it
is, and which side. They live through slices and transposes, as factors do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from zojax._numerics import PyTree, wide_dtype
from zojax.perturbations._low_rank import interpreter
from zojax.perturbations._low_rank.array import HIGHEST, LowRankArray, is_factored

if TYPE_CHECKING:
    from jax.extend.core import JaxprEqn


class Moments(NamedTuple):
    """Of rows: how many, their mean, and the sum of outer products of what is left."""

    number: jax.Array  # f[]
    mean: jax.Array  # f[n]
    scatter: jax.Array  # f[n, n]


@jax.jit
def _moments(rows: jax.Array) -> Moments:
    wide = rows.astype(wide_dtype(rows.dtype))
    mean = wide.mean(axis=0)
    away = wide - mean
    scatter = jnp.matmul(away.T, away, precision=HIGHEST)
    return Moments(jnp.asarray(len(rows), wide.dtype), mean, scatter)


@jax.jit
def _pooled(x: Moments, y: Moments) -> Moments:
    """The moments of the rows of both (Chan et al., 1979)."""
    number = x.number + y.number
    away = y.mean - x.mean
    between = (x.number * y.number / number) * jnp.outer(away, away)
    mean = x.mean + away * (y.number / number)
    return Moments(number, mean, x.scatter + y.scatter + between)


class Sides(NamedTuple):
    """Of what meets a matrix W[m, n] at its two sides."""

    m: Moments
    n: Moments
    into_m: bool  # whether W is used as x W, and not as W x


def _unrolled(run: interpreter.Run, eqn: JaxprEqn, *inputs: Any) -> list:
    """A scan as a Python loop, so that what is watched has values."""
    params = eqn.params
    consts, carry, xs = interpreter.scan_inputs(params, inputs)
    order = range(params["length"])
    each: dict[int, list] = {}
    body = params["jaxpr"]
    for i in reversed(order) if params["reverse"] else order:
        slices = [jax.tree.map(lambda leaf: leaf[i], x) for x in map(_spread, xs)]  # noqa: B023
        outputs = run(body.jaxpr, body.consts, (*consts, *carry, *slices))
        carry, each[i] = outputs[: len(carry)], outputs[len(carry) :]
    ys = zip(*(each[i] for i in order), strict=True)
    return [*carry, *(jnp.stack(y) for y in ys)]


def _spread(x: Any) -> Any:
    """A factored stack whose scale has the axis of the stack, too."""
    if not is_factored(x):
        return x
    if x.value.ndim < 3:  # a slice of a matrix is no matrix
        return x.value
    scale = jnp.broadcast_to(x.scale, x.value.shape[:1])
    return LowRankArray(x.value, x.a, x.b, scale)


def _marked(leaf: jax.Array, first: int) -> LowRankArray:
    """A stack of matrices with markers 2i along m and 2i + 1 along n, i from first."""
    *stack, m, n = leaf.shape
    number = max(1, leaf.size // max(1, m * n))
    marks = 2.0 * (first + jnp.arange(number, dtype=jnp.float32))
    marks = marks.reshape(*stack, 1, 1)
    along = lambda size, side: jnp.broadcast_to(marks + side, (*stack, size, 1))
    return LowRankArray(leaf, along(m, 0.0), along(n, 1.0), jnp.zeros(()))


def watched(
    function: Callable[..., Any], params: PyTree, chosen: list[bool], args: Any
) -> list[list[Sides | None] | None]:
    """Runs function(params, *args) and watches the chosen leaves.

    Args:
      function: whose program is run.
      params, args: what it is given; arrays with values.
      chosen: for each leaf of params, whether it is watched; those have two axes or
        more, the last two of them a matrix.

    Returns:
      For each leaf that is chosen what met each matrix of its stack, else None. A
      matrix that was part of no whole product x W or W x has None.
    """
    leaves, structure = jax.tree.flatten(params)
    found: dict[int, Sides] = {}
    starts, total = [], 0
    for i, leaf in enumerate(leaves):
        starts.append(total)
        if chosen[i]:
            leaves[i] = _marked(jnp.asarray(leaf), total)
            total += leaves[i].value.size // max(1, leaf.shape[-2] * leaf.shape[-1])
    shapes = {
        start: leaf.value.shape[-2:]
        for start, leaf in zip(starts, leaves, strict=True)
        if is_factored(leaf)
    }

    def shape_of(which):
        return shapes[max(start for start in shapes if start <= which)]

    def product(run, eqn, lhs, rhs):
        """A product, after a look at its operands."""
        del run
        out = interpreter.dot_general(eqn, lhs, rhs)
        if out is None or (is_factored(lhs) and is_factored(rhs)):
            return out
        left = is_factored(lhs)
        matrix, x = (lhs, rhs) if left else (rhs, lhs)
        (contracted, _) = eqn.params["dimension_numbers"]
        axis, x_axis = contracted if left else contracted[::-1]
        if matrix.value.ndim != 2:
            return out
        mark = int(matrix.a[0, 0])
        which, swapped = divmod(mark, 2)
        m, n = shape_of(which)
        if matrix.value.shape != ((n, m) if swapped else (m, n)):
            return out  # a part of a matrix
        # The free axis of the matrix is the last of the output, or the first.
        far = 0 if left else out.ndim - 1
        rows = lambda y, axis: jnp.moveaxis(y, axis, -1).reshape(-1, y.shape[axis])
        into, outof = _moments(rows(x, x_axis[0])), _moments(rows(out, far))
        into_m = (axis[0] == 0) != bool(swapped)
        new = Sides(*((into, outof) if into_m else (outof, into)), into_m)
        old = found.get(which)
        if old is not None and old.into_m == into_m:
            new = Sides(_pooled(old.m, new.m), _pooled(old.n, new.n), into_m)
        found[which] = new
        return out

    rules = interpreter.NESTED | {"scan": _unrolled, "dot_general": product}
    interpreter.of_factors(function, rules)(
        jax.tree.unflatten(structure, leaves), *args
    )
    out: list[list[Sides | None] | None] = []
    for start, leaf in zip(starts, leaves, strict=True):
        if not is_factored(leaf):
            out.append(None)
            continue
        number = leaf.a[..., 0, 0].size
        out.append([found.get(start + i) for i in range(number)])
    return out
