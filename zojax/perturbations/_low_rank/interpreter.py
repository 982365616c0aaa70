"""Running a function of arrays on factors, without forming the matrices.

A matrix W + s A B^T is only ever multiplied: x (W + s A B^T) = x W + s (x A) B^T. So
value_fn is traced once, and its program is run with factors in the place of matrices:
one product with W serves all directions, and no W is copied. What has no such rule is
given value + s A B^T, formed there.

This is the one module that depends on JAX's inside: on how programs are held, and what
their equations name. It is tested with the versions in VERSIONS.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import string
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from zojax import _loops as loops
from zojax._numerics import wide_dtype
from zojax.perturbations._low_rank.array import (
    HIGHEST,
    LowRankArray,
    add_scaled,
    formed,
    is_factored,
    sides,
)

VERSIONS = "0.9 to 0.12"

if TYPE_CHECKING:
    from jax.extend.core import Jaxpr, JaxprEqn


# -- rules: what a primitive does to factors -------------------------------------------
#
# A rule takes an equation and its inputs, and returns the output (a list where the
# primitive has several), or None where it cannot keep the factors. Rules are found by
# name, which outlives the renaming and moving of primitives between versions of JAX.

Rule = Callable[..., Any]
Run = Callable[..., list]  # (jaxpr, consts, args) -> outputs


def _replaced(x: LowRankArray, function: Callable, *args: Any) -> LowRankArray:
    """One function of all three parts; args have one entry for each."""
    value, a, b = map(function, (x.value, x.a, x.b), *args)
    return LowRankArray(value, a, b, x.scale)


def _by_axis(x: LowRankArray, along: tuple, rank: Any) -> tuple[tuple, tuple, tuple]:
    """What is given for each axis of x, for each axis of value, a and b."""
    m, n = sides(x)
    return tuple(along), (*along[:n], rank), (*along[:m], *along[n:], rank)


def axis_names(eqn: JaxprEqn, lhs: Any, rhs: Any) -> tuple[list, list, list]:
    """A letter for each axis of the operands of dot_general, and of what comes out."""
    (contract_lhs, contract_rhs), (batch_lhs, batch_rhs) = eqn.params[
        "dimension_numbers"
    ]
    letters = iter(string.ascii_letters)
    shared = {}
    for i, j in zip(
        (*batch_lhs, *contract_lhs), (*batch_rhs, *contract_rhs), strict=True
    ):
        shared[0, i] = shared[1, j] = next(letters)
    ndim = lambda x: x.value.ndim if is_factored(x) else jnp.ndim(x)
    lhs_names, rhs_names = (
        [shared.get((which, i)) or next(letters) for i in range(ndim(x))]
        for which, x in enumerate((lhs, rhs))
    )
    summed = {shared[0, i] for i in contract_lhs}
    out = [shared[0, i] for i in batch_lhs]
    out += [n for n in lhs_names + rhs_names if n not in summed and n not in out]
    return lhs_names, rhs_names, out


def dot_general(eqn: JaxprEqn, lhs: Any, rhs: Any) -> jax.Array | None:
    """x W + scale (x A) B^T, axes in the order of dot_general."""
    if is_factored(lhs) and is_factored(rhs):
        if lhs.value.size < rhs.value.size:
            lhs = formed(lhs)
        else:
            rhs = formed(rhs)
    left = is_factored(lhs)
    matrix, x = (lhs, rhs) if left else (rhs, lhs)
    contracts, batches = eqn.params["dimension_numbers"]
    contracted, batch = ({*part[0 if left else 1]} for part in (contracts, batches))
    m, n = sides(matrix)
    over_m = contracted <= {*range(m, n)}
    over_n = contracted <= {*range(n, matrix.value.ndim)}
    if not contracted or not (over_m or over_n) or not batch <= {*range(m)}:
        return None

    lhs_names, rhs_names, out = axis_names(eqn, lhs, rhs)
    of_matrix, of_x = (lhs_names, rhs_names) if left else (rhs_names, lhs_names)
    r = min({*string.ascii_letters} - {*lhs_names, *rhs_names})
    _, of_a, of_b = _by_axis(matrix, tuple(of_matrix), r)
    near, far, other = (matrix.a, of_a), (matrix.b, of_b), of_matrix[n:]
    if over_n:
        near, far, other = far, near, of_matrix[m:n]
    between = [name for name in out if name not in other] + [r]

    precision = eqn.params["precision"]
    # An algorithm names the dtypes of the operands, which factors do not have.
    precision = precision[0] if type(precision) is tuple else None

    out_aval: Any = eqn.outvars[0].aval
    dtype = out_aval.dtype
    wide = wide_dtype(dtype)

    def einsum(x, y, names):
        equation = "{},{}->{}".format(*("".join(n) for n in (x[1], y[1], names)))
        parts = [part[0].astype(wide) for part in (x, y)]
        return jnp.einsum(equation, *parts, precision=precision)

    noise = einsum((einsum((x, of_x), near, between), between), far, out)
    value = jax.lax.dot_general(
        *((matrix.value, x) if left else (x, matrix.value)),
        **{**eqn.params, "preferred_element_type": wide},
    )
    return add_scaled(value, matrix.scale, noise).astype(dtype)


def _transpose(eqn: JaxprEqn, x: LowRankArray) -> LowRankArray | None:
    order, (m, n) = tuple(eqn.params["permutation"]), sides(x)
    of_m, of_n = tuple(range(m, n)), tuple(range(n, len(order)))
    if order[m:] not in (of_m + of_n, of_n + of_m):
        return None
    swapped = order[m:] == of_n + of_m
    value = jnp.transpose(x.value, order)
    a, b = (
        jnp.transpose(leaf, (*order[:m], *range(m, leaf.ndim))) for leaf in (x.a, x.b)
    )
    return LowRankArray(value, *((b, a) if swapped else (a, b)), x.scale)


def _convert(eqn: JaxprEqn, x: LowRankArray) -> LowRankArray | None:
    dtype = eqn.params["new_dtype"]
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    wide = wide_dtype(dtype)
    return _replaced(x, lambda leaf, to: leaf.astype(to), (dtype, wide, wide))


def _slice(eqn: JaxprEqn, x: LowRankArray) -> LowRankArray:
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(start)
    rank = x.a.shape[-1]
    return _replaced(
        x,
        jax.lax.slice,
        _by_axis(x, start, 0),
        _by_axis(x, limit, rank),
        _by_axis(x, strides, 1),
    )


def _dynamic_slice(eqn: JaxprEqn, x: LowRankArray, *start: Any) -> LowRankArray | None:
    sizes = eqn.params["slice_sizes"]
    if len(start) != len(sizes):  # sizes that are not static
        return None
    zero = jnp.zeros((), jnp.result_type(start[0]))
    return _replaced(
        x,
        jax.lax.dynamic_slice,
        _by_axis(x, start, zero),
        _by_axis(x, sizes, x.a.shape[-1]),
    )


def _split(eqn: JaxprEqn, x: LowRankArray) -> list[LowRankArray]:
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]
    ends = [int(end) for end in itertools.accumulate(sizes)]
    cut = lambda leaf, axis: [
        jax.lax.slice_in_dim(leaf, end - int(size), end, axis=axis)
        for end, size in zip(ends, sizes, strict=True)
    ]
    m, n = sides(x)
    whole = lambda leaf: [leaf] * len(sizes)
    a = whole(x.a) if axis >= n else cut(x.a, axis)
    b = whole(x.b) if m <= axis < n else cut(x.b, axis if axis < m else axis - n + m)
    parts = zip(cut(x.value, axis), a, b, strict=True)
    return [LowRankArray(*part, x.scale) for part in parts]


def _squeeze(eqn: JaxprEqn, x: LowRankArray) -> LowRankArray | None:
    axes = eqn.params["dimensions"]
    if any(axis >= sides(x)[0] for axis in axes):
        return None
    return _replaced(x, lambda leaf: jax.lax.squeeze(leaf, axes))


def _reshape(eqn: JaxprEqn, x: LowRankArray) -> LowRankArray | None:
    """Another stack of the same matrices, or other axes of each of their sides."""
    sizes, shape, (m, n) = tuple(eqn.params["new_sizes"]), x.value.shape, sides(x)
    if eqn.params["dimensions"] is not None:
        return None
    new_m = len(sizes) - len(shape) + m
    new_n = new_m + n - m
    if new_m < 0 or sizes[new_m:] != shape[m:]:
        if 0 in sizes or eqn.params.get("sharding") is not None:
            return None
        # Where the stack and where m end, of the new axes.
        ends = [1, *itertools.accumulate(sizes, operator.mul)]
        new_m = ends.index(s) if (s := math.prod(shape[:m])) in ends else len(sizes)
        if (end := math.prod(shape[:n])) not in ends[new_m + 1 : -1]:
            return None
        new_n = ends.index(end, new_m + 1)
    rank = x.a.shape[-1]
    of_a, of_b = (*sizes[:new_n], rank), (*sizes[:new_m], *sizes[new_n:], rank)
    return _replaced(x, jnp.reshape, (sizes, of_a, of_b))


def _gather(eqn: JaxprEqn, x: Any, indices: Any) -> Any:
    """Slices of a matrix, as arrays; or matrices of a stack, as factors."""
    if is_factored(indices):
        return None
    params = dict(eqn.params)
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    shape, rank = x.value.shape, x.a.shape[-1]
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    moved = dropped | {*numbers.start_index_map}
    whole = [i for i, n in enumerate(shape) if i not in moved and sizes[i] == n]
    kept = [i for i in range(len(shape)) if i not in dropped]

    def gather(operand, sizes, **options):
        return jax.lax.gather(
            operand, indices, **{**params, "slice_sizes": sizes, **options}
        )

    m = sides(x)[0]
    if {*range(m, len(shape))} <= {*whole}:
        out_aval: Any = eqn.outvars[0].aval
        last = tuple(range(out_aval.ndim - len(shape) + m, out_aval.ndim))
        if numbers.offset_dims[m - len(shape) :] != last:
            return None
        return _replaced(x, gather, _by_axis(x, sizes, rank))
    if len(shape) != 2 or len(whole) != 1:
        return None
    (axis,) = whole
    near, far = (x.a, x.b) if axis == 1 else (x.b.T, x.a)
    sizes_near = tuple(rank if i == axis else n for i, n in enumerate(sizes))
    # Beyond the bounds the value alone says what is filled in.
    near = gather(near, sizes_near, fill_value=0)
    place = numbers.offset_dims[kept.index(axis)]
    noise = jnp.tensordot(near, far, axes=((place,), (1,)), precision=HIGHEST)
    return add_scaled(gather(x.value, sizes), x.scale, jnp.moveaxis(noise, -1, place))


# Rules of what holds a program are given what runs one, too.


def _call(run: Run, eqn: JaxprEqn, *inputs: Any) -> list:
    """Runs the program inside; derivative rules and remat are not needed any more."""
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    (inner,) = (eqn.params[name] for name in names if name in eqn.params)
    if hasattr(inner, "consts"):  # a ClosedJaxpr; that of remat is open
        return run(inner.jaxpr, inner.consts, inputs)
    return run(inner, (), inputs)


def scan_inputs(params: dict[str, Any], inputs: Sequence[Any]) -> list[list]:
    """Constants, carry and slices of a scan."""
    if "ft_in" in params:  # from JAX 0.11 on
        return [list(part) for part in params["ft_in"].update(inputs).unpack()]
    first = params["num_consts"]
    last = first + params["num_carry"]
    return [list(part) for part in (inputs[:first], inputs[first:last], inputs[last:])]


def _scan(run: Run, eqn: JaxprEqn, *inputs: Any) -> list:
    """The same loop over the parts: constants and slices stay factored."""
    params = eqn.params
    consts, init, xs = scan_inputs(params, inputs)
    init = [formed(x) for x in init]
    # A slice of a matrix has no factors of its own.
    xs = [formed(x) if is_factored(x) and sides(x)[0] == 0 else x for x in xs]
    scales = [x.scale if is_factored(x) else None for x in xs]
    parts = [(x.value, x.a, x.b) if is_factored(x) else x for x in xs]
    body = params["jaxpr"]

    def step(carry, parts):
        slices = [
            part if scale is None else LowRankArray(*part, scale)
            for part, scale in zip(parts, scales, strict=True)
        ]
        outputs = run(body.jaxpr, body.consts, (*consts, *carry, *slices))
        outputs = [formed(x) for x in outputs]
        return outputs[: len(init)], outputs[len(init) :]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = loops.scan(step, init, parts, **options)
    return [*carry, *ys]


_RULES: dict[str, Rule] = {
    "dot_general": dot_general,
    "transpose": _transpose,
    "convert_element_type": _convert,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "gather": _gather,
    **dict.fromkeys(("copy", "copy_p", "name", "stop_gradient"), lambda eqn, x: x),
}
NESTED: dict[str, Rule] = {
    "scan": _scan,
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call"), _call),
    **dict.fromkeys(("checkpoint", "remat2", "custom_jvp_call"), _call),
    **dict.fromkeys(("custom_vjp_call", "custom_vjp_call_jaxpr"), _call),
}


# -- running a program -----------------------------------------------------------------


def _bind(eqn: JaxprEqn, inputs: list) -> Any:
    """The primitive as it was traced, as jax.core.eval_jaxpr runs it."""
    params = eqn.primitive.get_bind_params(eqn.params)
    # Until JAX 0.9 the functions among the parameters came apart from them.
    functions, params = params if isinstance(params, tuple) else ((), params)
    with eqn.ctx.manager:
        return eqn.primitive.bind(*functions, *inputs, **params)


def run_program(
    jaxpr: Jaxpr, consts: Any, args: Any, nested: dict[str, Rule] = NESTED
) -> list:
    """Evaluates a program on arrays and LowRankArrays; outputs may be either."""
    run = functools.partial(run_program, nested=nested)
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    read = lambda v: v.val if hasattr(v, "val") else known[v]  # a Literal, or a Var
    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        outputs = None
        if any(is_factored(x) for x in inputs):
            name = eqn.primitive.name
            if name in nested:
                outputs = nested[name](run, eqn, *inputs)
            elif name in _RULES:
                outputs = _RULES[name](eqn, *inputs)
            inputs = inputs if outputs is not None else [formed(x) for x in inputs]
        if outputs is None:
            outputs = _bind(eqn, inputs)
        if not isinstance(outputs, (list, tuple)):
            outputs = [outputs]
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def of_factors(
    function: Callable[..., Any], nested: dict[str, Rule] = NESTED
) -> Callable[..., Any]:
    """Lets a function of (params, ...) take LowRankArrays among its params.

    Rules of ``nested`` take the place of the usual ones.
    """

    def run(params, *args, **kwargs):
        leaves, structure = jax.tree.flatten(params, is_leaf=is_factored)
        places = [i for i, leaf in enumerate(leaves) if is_factored(leaf)]
        if not places:
            return function(params, *args, **kwargs)
        factored = [leaves[i] for i in places]

        def of_arrays(arrays):
            whole = list(leaves)
            for i, array in zip(places, arrays, strict=True):
                whole[i] = array
            whole = jax.tree.unflatten(structure, whole)
            return function(whole, *args, **kwargs)

        shapes = [jax.eval_shape(formed, x) for x in factored]
        traced, like = jax.make_jaxpr(of_arrays, return_shape=True)(shapes)
        try:
            outputs = run_program(traced.jaxpr, traced.consts, factored, nested)
        except (AttributeError, KeyError) as error:  # of a program, not of value_fn
            raise RuntimeError(
                f"low_rank(...) and cores read programs of JAX {VERSIONS} and cannot"
                f" read this one of JAX {jax.__version__} ({error!r}):"
                " from_rows(low_rank(...).row) forms the matrices instead"
            ) from error
        outputs = [formed(x) for x in outputs]
        return jax.tree.unflatten(jax.tree.structure(like), outputs)

    return run
