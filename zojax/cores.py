"""Small cores between fixed bases: a matrix W is used as W + A R B^T.

A and B are principal directions of what goes into W and of what comes out of it, found
with forward passes. R alone is tuned: few entries, and each one matters, which is what
an estimate from values needs. No copy of W is made: x W + ((x A) R) B^T.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zojax._checks import check_int
from zojax._numerics import PyTree, wide_dtype
from zojax._objective import check_params
from zojax.perturbations._composed import broadcast_mask
from zojax.perturbations._low_rank.array import (
    HIGHEST,
    LowRankArray,
    formed,
    is_factored,
)
from zojax.perturbations._low_rank.interpreter import of_factors
from zojax.perturbations._low_rank.watch import Met, Moments, watched

__all__ = ["Basis", "adapt", "merge", "principal_bases", "zeros"]

LARGEST = 16_384  # longest side of a matrix whose principal directions are found


class Basis(NamedTuple):
    """Fixed directions at the two sides of a stack of matrices W[..., m, n].

    The axes of a side with several count as one: a kernel [width, heads, size] that is
    contracted over its first axis has m = width and n = heads * size.
    """

    a: jax.Array  # f[..., m, r]
    b: jax.Array  # f[..., n, s]


def _is_basis(x: Any) -> bool:
    return x is None or isinstance(x, Basis)


def _principal(moments: Moments, rank: int, whiten: bool) -> jax.Array:
    """Principal directions f[n, rank], divided by their deviations or times these."""
    values, vectors = jnp.linalg.eigh(moments.scatter / moments.number)
    values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
    largest = jnp.argmax(jnp.abs(vectors), axis=0)
    vectors *= jnp.sign(vectors[largest, jnp.arange(rank)])  # one of two signs
    # What is rounding beside the first direction is no direction at all.
    tiny = jnp.finfo(values.dtype).eps * len(moments.mean) * values[0]
    deviations = jnp.sqrt(jnp.where(values > tiny, values, 0))
    if not whiten:
        return vectors * deviations
    return vectors / jnp.where(deviations > 0, deviations, jnp.inf)


def _predicting(moments: Moments) -> jax.Array:
    """Directions f[n, k] of ridge regressions of the targets, of unit variance.

    The ridge is the mean variance of an input: rows are few beside a wide layer.
    """
    covariance = moments.scatter / moments.number
    ridge = jnp.trace(covariance) / len(covariance)
    ridge = jnp.where(ridge > 0, ridge, 1) * jnp.eye(len(covariance))
    slopes = jnp.linalg.solve(covariance + ridge, moments.cross / moments.number)
    variances = jnp.einsum("nk,nm,mk->k", slopes, covariance, slopes, precision=HIGHEST)
    return slopes / jnp.where(variances > 0, jnp.sqrt(variances), jnp.inf)


def _inputs(moments: Moments, rank: int) -> jax.Array:
    """What predicts targets, then principal directions: f[n, rank] of unit variance."""
    first = _predicting(moments)
    rest = rank - first.shape[1]
    if rest <= 0:
        return first
    return jnp.concatenate([first, _principal(moments, rest, True)], axis=1)


def _basis_of(leaf: Any, met: Met, ranks: tuple[int, int]) -> Basis:
    """One pair of directions for each matrix of a stack."""
    stack, _, _ = met.reading.shape(leaf)
    pairs = []
    for one in met.sides:
        into, outof = (one.m, one.n) if one.into_m else (one.n, one.m)
        inputs = _inputs(into, min(ranks[0], len(into.mean)))
        outputs = _principal(outof, min(ranks[1], len(outof.mean)), False)
        pairs.append((inputs, outputs) if one.into_m else (outputs, inputs))
    a, b = (jnp.stack(x) for x in zip(*pairs, strict=True))
    return Basis(a.reshape(*stack, *a.shape[1:]), b.reshape(*stack, *b.shape[1:]))


def principal_bases(
    function: Callable[..., Any],
    params: PyTree,
    *args: Any,
    rank: int | tuple[int, int] = 4,
    which: PyTree = True,
    targets: jax.Array | None = None,
) -> PyTree:
    """Finds bases for cores: principal directions of inputs and outputs, with passes.

    For each matrix W that function multiplies with, y = x W over all rows x it meets:

        cov(x) = sum_i l_i a_i a_i^T,   A = [a_i / sqrt(l_i)]     of the r largest l_i
        cov(y) = sum_i l_i b_i b_i^T,   B = [b_i sqrt(l_i)]

    With targets t of the rows, labels say, the first of A are directions that predict
    them, a_j = (cov(x) + mean l_i)^-1 cov(x, t_j) to scale: what a task depends on is
    then met by few entries, and far fewer queries find its gradient.

    x A has unit variance, and an entry of R moves y by so much of y's own deviation
    along b_i: entries of all matrices are on one scale, and one step size serves all.

    function runs once, outside of jit, with its loops unrolled: a few hundred rows are
    enough, for targets as many as there are. It may be any JAX function, unchanged, and
    for several batches, without targets, be called on each of them:
    ``lambda params: [loss(params, b) for b in batches]``.

    Args:
      function: (params, *args) -> anything, as in value_fn; ``x @ W``, flax's Dense and
        Linear and attention, einsum over all axes of a side of a matrix.
      params: pytree; leaves with two axes or more are stacks of matrices [..., m, n].
        Of a leaf that was in no product as such, as [width, heads, size] of flax's
        attention, several axes are taken as a side: function runs again for each way.
      *args: what else function takes: a batch.
      rank: r of inputs and s of outputs, or one number for both; at most the side's.
      which: pytree prefix of bools, True where matrices get cores, or a function of
        params that returns one.
      targets: f[B] or f[B..., k], k at most r, for a function whose rows x have the
        first axes B...: of sentences, where x are their tokens. What is left of r are
        principal directions.

    Returns:
      A pytree like params: a :class:`Basis` at each such stack, None elsewhere: what
      is only looked up, convolved or multiplied in parts, and several axes that are
      more than 16,384 together. A direction along which nothing varies is 0.

    Raises:
      ValueError: for an argument out of its range, a chosen matrix with a side longer
        than 16,384, or where no matrix that is chosen takes part in a whole product (a
        table that is only indexed, a matrix inside of while_loop or cond).

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> params = {"w": jnp.eye(3), "b": jnp.zeros(3)}
      >>> x = jax.random.normal(jax.random.key(0), (50, 3)) * jnp.array([1.0, 9.0, 3.0])
      >>> f = lambda p, x: jnp.tanh(x @ p["w"] + p["b"])
      >>> bases = zojax.cores.principal_bases(f, params, x, rank=(2, 1))
      >>> bases["w"].a.shape, bases["w"].b.shape, bases["b"]
      ((3, 2), (3, 1), None)
      >>> print(jnp.abs(bases["w"].a).argmax(axis=0))  # the inputs that vary most
      [1 2]
      >>> print(jnp.var(x @ bases["w"].a, axis=0).round(3))
      [1. 1.]

    Source: LoRA-XS, arXiv 2405.17604, with activations in the place of W's own SVD.
    """
    check_params(params)
    ranks = rank if isinstance(rank, tuple) else (rank, rank)
    if len(ranks) != 2:
        raise ValueError(f"rank must be a number or a pair of them, got {rank!r}")
    for number in ranks:
        check_int("rank", number, 1)
    if targets is not None:
        targets = jnp.asarray(targets, wide_dtype(jnp.result_type(targets)))
        targets = targets[:, None] if targets.ndim == 1 else targets
        if targets.ndim == 0 or not 1 <= targets.shape[-1] <= ranks[0]:
            raise ValueError(
                f"targets must be f[B] or f[B..., k] with k from 1 to {ranks[0]}, got"
                f" shape {targets.shape}"
            )
    chosen = []
    flags = broadcast_mask("which", which, params)
    paths = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), flag in zip(paths, jax.tree.leaves(flags), strict=True):
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        chosen.append(bool(flag) and jnp.ndim(leaf) >= 2 and floating)
        if chosen[-1] and max(jnp.shape(leaf)[-2:]) > LARGEST:
            name, shape = jax.tree_util.keystr(path), jnp.shape(leaf)
            raise ValueError(
                f"which must be False at params{name}: a side of at most {LARGEST} is"
                f" accepted, got shape {shape}"
            )
    bases = [
        None if met is None else _basis_of(leaf, met, ranks)
        for (_, leaf), met in zip(
            paths,
            watched(function, params, chosen, args, LARGEST, targets),
            strict=True,
        )
    ]
    if not any(basis is not None for basis in bases):
        names = [
            jax.tree_util.keystr(path)
            for (path, _), flag in zip(paths, chosen, strict=True)
            if flag
        ]
        raise ValueError(
            "which must choose matrices that function multiplies with, got"
            f" {', '.join(names) or 'none'}"
        )
    return jax.tree.unflatten(jax.tree.structure(params), bases)


def zeros(bases: PyTree, dtype: Any = jnp.float32) -> PyTree:
    """Cores at their start: W + A 0 B^T = W.

    Args:
      bases: of :func:`principal_bases`.
      dtype: of the cores.

    Returns:
      A pytree like bases with f[..., r, s] for each basis: what an estimator perturbs
      and an optimizer moves.

    Raises:
      ValueError: for a dtype that is not floating.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> basis = zojax.cores.Basis(jnp.ones((6, 3, 2)), jnp.ones((6, 5, 4)))
      >>> zojax.cores.zeros({"w": basis, "b": None})["w"].shape
      (6, 2, 4)

    Source: LoRA-XS, arXiv 2405.17604.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be floating, got {dtype!r}")

    def core(basis):
        if basis is None:
            return None
        shape = (*basis.a.shape[:-2], basis.a.shape[-1], basis.b.shape[-1])
        return jnp.zeros(shape, dtype)

    return jax.tree.map(core, bases, is_leaf=_is_basis)


def _factored(leaf: jax.Array, basis: Basis, core: Any) -> LowRankArray:
    """W, A R and B, whose sides have the axes that W's have."""
    wide = wide_dtype(leaf.dtype)
    a, b, r = (jnp.asarray(x, wide) for x in (*basis, core))
    first = a.ndim - 2  # of m; where n begins its sides say
    for n in range(first + 1, leaf.ndim):
        of_m, of_n = leaf.shape[first:n], leaf.shape[n:]
        if (math.prod(of_m), math.prod(of_n)) == (a.shape[-2], b.shape[-2]):
            break
    split = lambda x, sizes: x.reshape(*x.shape[:-2], *sizes, x.shape[-1])
    return LowRankArray(leaf, split(a @ r, of_m), split(b, of_n), jnp.ones((), wide))


def _attached(cores: PyTree, frozen: PyTree, bases: PyTree) -> PyTree:
    """The params with W, A R and B in the place of W."""
    structure: Any
    leaves, structure = jax.tree.flatten(frozen)
    parts = zip(
        leaves,
        structure.flatten_up_to(bases),
        structure.flatten_up_to(cores),
        strict=True,
    )
    out = []
    for leaf, basis, core in parts:
        if basis is None:
            out.append(leaf)
            continue
        out.append(_factored(jnp.asarray(leaf), basis, core))
    return jax.tree.unflatten(structure, out)


def adapt(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function of params one of cores, at x W + ((x A) R) B^T.

    function is traced and its products with W are run with the factors beside W, as
    with :func:`zojax.perturbations.low_rank`: K members of a ``vmap`` share one product
    with W, and no W is copied. It can be differentiated too.

    Args:
      function: (params, ...) -> anything, its other arguments given by name.

    Returns:
      (cores, *, frozen, bases, ...) -> what function returns: a value_fn for
      estimators, with the params that stay as they are as ``frozen``.

    Raises:
      ValueError: for a function that takes ``*args`` or ``**kwargs``, or an argument
        named ``frozen`` or ``bases``.

    Example:
      >>> import jax, jax.numpy as jnp, optax, zojax
      >>> f = lambda w, x: jnp.mean((x @ w - 1.0) ** 2)
      >>> w, x = jnp.eye(3), jax.random.normal(jax.random.key(0), (20, 3))
      >>> bases = zojax.cores.principal_bases(f, w, x, rank=2)
      >>> value_fn, cores = zojax.cores.adapt(f), zojax.cores.zeros(bases)
      >>> opt = optax.chain(zojax.two_point(1e-2, 4, key=0), optax.sgd(0.1))
      >>> updates, state = opt.update(None, opt.init(cores), cores, value_fn=value_fn,
      ...                             frozen=w, bases=bases, x=x)
      >>> cores = optax.apply_updates(cores, updates)
      >>> bool(value_fn(cores, frozen=w, bases=bases, x=x) < f(w, x))
      True

    Source: LoRA-XS, arXiv 2405.17604; EGGROLL, arXiv 2511.16652, for the products.
    """
    kinds = inspect.Parameter
    names = list(inspect.signature(function).parameters.values())[1:]
    for p in names:
        if p.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
            raise ValueError(f"function must name each argument, got {p} among them")
        if p.name in ("frozen", "bases"):
            raise ValueError(f"function must have no argument {p.name!r}")
    run = of_factors(function)

    def adapted(cores, *, frozen, bases, **data):
        return run(_attached(cores, frozen, bases), **data)

    own = [kinds("cores", kinds.POSITIONAL_OR_KEYWORD)]
    own += [kinds(name, kinds.KEYWORD_ONLY) for name in ("frozen", "bases")]
    data = [p.replace(kind=kinds.KEYWORD_ONLY) for p in names]
    adapted.__signature__ = inspect.Signature([*own, *data])  # type: ignore[attr-defined]
    return adapted


def merge(cores: PyTree, frozen: PyTree, bases: PyTree) -> PyTree:
    """The params W + A R B^T, formed: to be used and saved without zojax.

    Args:
      cores: tuned.
      frozen: the params that they were tuned for.
      bases: theirs.

    Returns:
      A pytree like frozen, its dtypes kept.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> basis = zojax.cores.Basis(jnp.ones((3, 1)), jnp.ones((2, 1)))
      >>> print(zojax.cores.merge(jnp.full((1, 1), 0.5), jnp.zeros((3, 2)), basis))
      [[0.5 0.5]
       [0.5 0.5]
       [0.5 0.5]]

    Source: LoRA-XS, arXiv 2405.17604.
    """
    attached = _attached(cores, frozen, bases)
    return jax.tree.map(formed, attached, is_leaf=is_factored)
