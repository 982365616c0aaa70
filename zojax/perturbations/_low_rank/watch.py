"""What goes into a matrix and what comes out of it, as a function runs.

The function's program is run equation by equation outside of jit, its loops unrolled. A
matrix that is watched carries markers in the place of factors: which one of a stack it
is, and which side. They live through slices and transposes, as factors do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from zojax._numerics import PyTree, wide_dtype
from zojax.perturbations._low_rank import interpreter
from zojax.perturbations._low_rank.array import (
    HIGHEST,
    LowRankArray,
    is_factored,
    sides,
)

if TYPE_CHECKING:
    from jax.extend.core import JaxprEqn


class Moments(NamedTuple):
    """Of rows: how many, their mean, and sums of outer products of what is left."""

    number: jax.Array  # f[]
    mean: jax.Array  # f[n]
    scatter: jax.Array  # f[n, n]
    cross: jax.Array  # f[n, k], with k targets of each row


@jax.jit
def _moments(rows: jax.Array, targets: jax.Array) -> Moments:
    wide = rows.astype(wide_dtype(rows.dtype))
    mean = wide.mean(axis=0)
    away = wide - mean
    apart = (targets - targets.mean(axis=0)).astype(wide.dtype)
    of_rows = lambda y: jnp.matmul(away.T, y, precision=HIGHEST)
    number = jnp.asarray(len(rows), wide.dtype)
    return Moments(number, mean, of_rows(away), of_rows(apart))


@jax.jit
def _pooled(x: Moments, y: Moments) -> Moments:
    """Moments of the rows of both, whose targets are the same (Chan et al., 1979)."""
    number = x.number + y.number
    away = y.mean - x.mean
    between = (x.number * y.number / number) * jnp.outer(away, away)
    mean = x.mean + away * (y.number / number)
    return Moments(number, mean, x.scatter + y.scatter + between, x.cross + y.cross)


class Sides(NamedTuple):
    """Of what meets a matrix W[m, n] at its two sides."""

    m: Moments
    n: Moments
    into_m: bool  # whether W is used as x W, and not as W x


class Reading(NamedTuple):
    """The axes of a leaf as those of a stack of matrices: stack, m, n."""

    m: int  # the first axis of each side
    n: int

    def shape(self, leaf: Any) -> tuple[tuple[int, ...], int, int]:
        """(The stack's axes, m, n)."""
        shape = jnp.shape(leaf)
        rest = shape[self.m : self.n], shape[self.n :]
        return shape[: self.m], math.prod(rest[0]), math.prod(rest[1])


class Met(NamedTuple):
    """What met each matrix of a leaf, in the order of the stack."""

    reading: Reading
    sides: list[Sides]


def readings(ndim: int) -> list[Reading]:
    """Ways to read so many axes; matrices of one axis a side first."""
    pairs = itertools.combinations(range(ndim), 2)
    return [Reading(*pair) for pair in sorted(pairs, reverse=True) if pair[1]]


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
    if sides(x)[0] == 0:  # a slice of a matrix is no matrix
        return x.value
    scale = jnp.broadcast_to(x.scale, x.value.shape[:1])
    return LowRankArray(x.value, x.a, x.b, scale)


def _marked(leaf: jax.Array, first: int, reading: Reading) -> LowRankArray:
    """A stack of matrices with markers 2i along m and 2i + 1 along n, i from first."""
    shape, (m, n) = leaf.shape, reading
    number = math.prod(shape[:m])
    marks = 2.0 * (first + jnp.arange(number, dtype=jnp.float32))

    def along(sizes, side):
        column = marks.reshape(*shape[:m], *[1] * len(sizes), 1) + side
        return jnp.broadcast_to(column, (*shape[:m], *sizes, 1))

    a, b = along(shape[m:n], 0.0), along(shape[n:], 1.0)
    return LowRankArray(leaf, a, b, jnp.zeros(()))


def _met(
    x: jax.Array,
    names: list,
    at: dict[Any, int],
    last: list,
    targets: jax.Array | None = None,
) -> Moments:
    """Moments of x, whose axes have names: at an index, those of ``last`` as rows."""
    x = x[tuple(at.get(name, slice(None)) for name in names)]
    left = [name for name in names if name not in at]
    axes = [left.index(name) for name in last]
    x = jnp.moveaxis(x, axes, range(-len(axes), 0))
    lead = x.shape[: -len(axes)]
    rows = x.reshape(math.prod(lead), -1)
    if targets is None:
        return _moments(rows, jnp.zeros((len(rows), 0)))
    *own, number = targets.shape
    if lead[: len(own)] != (*own,):
        raise ValueError(
            f"targets must have the first axes of the rows that function multiplies,"
            f" {lead}, got shape {targets.shape}"
        )
    spread = targets.reshape(*own, *[1] * (len(lead) - len(own)), number)
    return _moments(rows, jnp.broadcast_to(spread, (*lead, number)).reshape(-1, number))


def watched(
    function: Callable[..., Any],
    params: PyTree,
    chosen: list[bool],
    args: Any,
    longest: int,
    targets: jax.Array | None = None,
) -> list[Met | None]:
    """Runs function(params, *args) and watches the chosen leaves.

    Args:
      function: whose program is run: once, and again for other readings of leaves with
        three axes or more that were in no product as stacks of matrices.
      params, args: what it is given; arrays with values.
      chosen: for each leaf of params, whether it is watched; those have two axes or
        more.
      longest: side that is watched.
      targets: f[rows..., k], of inputs with such first axes.

    Returns:
      For each leaf what met it, None where it is not chosen or where one of its
      matrices was part of no whole product x W or W x.
    """
    leaves = jax.tree.leaves(params)
    out: list[Met | None] = [None] * len(leaves)
    left = {
        i: [
            way
            for way in readings(jnp.ndim(leaf))
            if max(way.shape(leaf)[1:]) <= longest
        ]
        for i, leaf in enumerate(leaves)
        if chosen[i]
    }
    while left := {i: ways for i, ways in left.items() if ways and out[i] is None}:
        ways = {i: ways.pop(0) for i, ways in left.items()}
        found = _watched_once(function, params, ways, args, targets)
        for i, met in found.items():
            out[i] = met
    return out


def _watched_once(
    function: Callable[..., Any],
    params: PyTree,
    ways: dict[int, Reading],
    args: Any,
    targets: jax.Array | None,
) -> dict[int, Met]:
    """Watches leaves as they are read; those are left out that were not met."""
    leaves, structure = jax.tree.flatten(params)
    found: dict[int, Sides] = {}
    starts: dict[int, int] = {}
    shapes: list[tuple[int, int]] = []  # of each marked matrix
    for i, way in ways.items():
        stack, *shape = way.shape(leaves[i])
        starts[i] = len(shapes)
        shapes += [(shape[0], shape[1])] * math.prod(stack)
        leaves[i] = _marked(jnp.asarray(leaves[i]), starts[i], way)

    def product(run, eqn, lhs, rhs):
        """A product, after a look at its operands."""
        del run
        out = interpreter.dot_general(eqn, lhs, rhs)
        if out is None or (is_factored(lhs) and is_factored(rhs)):
            return out
        of_lhs, of_rhs, of_out = interpreter.axis_names(eqn, lhs, rhs)
        pairs = (lhs, of_lhs), (rhs, of_rhs)
        (matrix, names), (x, of_x) = pairs if is_factored(lhs) else pairs[::-1]
        m, n = sides(matrix)
        near, far = names[m:n], names[n:]
        if near[0] in of_out:  # not the side that is summed over
            near, far = far, near
        if any(name in of_out for name in near):
            return out  # a part of a side
        shape = matrix.value.shape
        shape = math.prod(shape[m:n]), math.prod(shape[n:])
        for index in itertools.product(*map(range, matrix.value.shape[:m])):
            which, swapped = divmod(int(matrix.a[index].ravel()[0]), 2)
            if shape != (shapes[which][::-1] if swapped else shapes[which]):
                continue  # a part of a matrix
            at = dict(zip(names[:m], index, strict=True))
            into = _met(x, of_x, at, near, targets)
            outof = _met(out, of_out, at, far)
            into_m = (near == names[m:n]) != bool(swapped)
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
    whole = {}
    for i, way in ways.items():
        number = math.prod(leaves[i].value.shape[: way.m])
        met = [found.get(starts[i] + j) for j in range(number)]
        every = [one for one in met if one is not None]
        if every and len(every) == len(met):
            whole[i] = Met(way, every)
    return whole
