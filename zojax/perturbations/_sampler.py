"""What a sampler is: the functions that draw a direction, walk along it and sum it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from zojax import _docs as docs
from zojax import _loops as loops
from zojax._checks import check_option
from zojax._numerics import PyTree, contract, is_none, wide_dtype
from zojax.perturbations._noise import Entries

Design = Literal["independent", "orthogonal", "zero_sum", "joint"]
DESIGNS = get_args(Design)
Row = Callable[[jax.Array, Any, int, PyTree], PyTree]
Line = Callable[[jax.Array], PyTree]
"""scale -> params + scale v_k, as value_fn gets it."""


class Sampler(NamedTuple):
    """How the rows of a K x d matrix V of perturbation directions are drawn and used.

    Rows satisfy E[v v^T] = I, and row k is a pure function of (key, k) and of shapes,
    dtypes and places of params: it can be drawn again at any time. Calling a sampler
    draws a row; :func:`from_rows` makes one from a function of one's own.

    Attributes:
      row: (key, k, K, params) -> v_k, a pytree like params, None at frozen leaves.
      line: (key, k, K, params) -> (scale -> params + scale v_k, as value_fn gets it).
        What depends on the row alone is drawn once for all scales.
      combine: (weights f[..., n], key, ks i32[n], K, params) -> sum_i weights_i v_k_i,
        in at least float32, None at frozen leaves.
      adapt: value_fn -> a value_fn that takes the points of line.
      check: K -> None; raises ValueError for a number of directions that does not fit.
      design: what the rows of one key are together: "independent"; "orthogonal" and of
        length sqrt(d), for K <= d; "zero_sum"; or "joint", with no such promise.
      holds_rows: whether the K rows may be held between asking and combining. Then line
        and combine must be those of ``from_rows(row)``.
      entries: how arrays of float32 noise are drawn, if the entries of a row are
        independent; what :func:`lazy` and :func:`low_rank` draw from.
      terms: (key, k, K, params) -> v_k by leaf as keys and scales of draws, if it can
        be named without being drawn; what ``dap(storage="replay")`` combines.
      at_step: (key words of the run, step count) -> the sampler of that step, for one
        that keeps something over several steps, as a subspace.
    """

    row: Row
    line: Callable[[jax.Array, Any, int, PyTree], Line]
    combine: Callable[[jax.Array, jax.Array, jax.Array, int, PyTree], PyTree]
    adapt: Callable[[Callable[[PyTree], Any]], Callable[[PyTree], Any]]
    check: Callable[[int], None]
    design: Design = "independent"
    holds_rows: bool = True
    entries: Entries | None = None
    terms: Callable[[jax.Array, Any, int, PyTree], PyTree] | None = None
    at_step: "Callable[[jax.Array, jax.Array], Sampler] | None" = None

    def __call__(
        self, key: jax.Array, k: jax.Array | int, num_directions: int, params: PyTree
    ) -> PyTree:
        """Draws row k."""
        return self.row(key, k, num_directions, params)

    def __repr__(self) -> str:
        """Names the function that draws, not ten functions."""
        return f"Sampler(row={self.row!r}, ...)"


def check_sampler(name: str, sampler: Any) -> None:
    """Raises unless the argument of this name is a sampler."""
    if not isinstance(sampler, Sampler):
        way = "zojax.perturbations.gaussian(), say; from_rows(row) makes one"
        raise ValueError(f"{name} must be a zojax.Sampler ({way}), got {sampler!r}")


def entries_of(name: str, sampler: Any) -> Entries:
    """How the entries of the rows are drawn; raises unless they are independent."""
    check_sampler(name, sampler)
    if sampler.entries is None:
        accepted = "gaussian() or rademacher(), of independent entries"
        advice = "restrict goes outside"
        raise ValueError(f"{name} must be {accepted} ({advice}), got {sampler!r}")
    return sampler.entries


def check_holds_rows(name: str, sampler: Sampler) -> None:
    """Raises for a base of aligned directions whose rows may not be held."""
    if not sampler.holds_rows:
        raise ValueError(
            f"{name} must be a sampler whose rows may be held: an aligned direction is"
            " formed whole, which lazy(...) and low_rank(...) avoid. There is"
            f' dap(storage="replay"); or from_rows({name}.row), held; got {sampler!r};'
            f" {docs.REPLAYED}"
        )


def sampler_at(sampler: Sampler, key: jax.Array, count: jax.Array | int) -> Sampler:
    """The sampler of step ``count`` in a run with this key."""
    if sampler.at_step is None:
        return sampler
    return sampler.at_step(key, jnp.asarray(count))


def map_leading(
    function: Callable,
    xs: PyTree,
    size: int,
    chunk_size: int | None = None,
    *,
    unroll: bool = False,
) -> PyTree:
    """Maps over a leading axis, ``chunk_size`` at a time (None: all at once)."""
    if size == 1:
        only = function(jax.tree.map(lambda x: jnp.squeeze(x, 0), xs))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], only)
    if chunk_size is None or chunk_size >= size:
        return jax.vmap(function)(xs)
    return loops.map_rows(function, xs, chunk_size, unroll=unroll)


def stacked_rows(
    row: Row, key: jax.Array, ks: jax.Array, num_directions: int, params: PyTree
) -> PyTree:
    """Rows ks of V, stacked."""
    return map_leading(lambda k: row(key, k, num_directions, params), ks, len(ks))


def perturb(params: PyTree, direction: PyTree, scale: jax.Array | float) -> PyTree:
    """params + scale * direction, rounded once; frozen leaves are passed through."""

    def leaf(v, p):
        if v is None:
            return p
        wide = wide_dtype(jnp.result_type(p))
        moved = jnp.asarray(p, wide) + jnp.asarray(scale, wide) * v.astype(wide)
        return moved.astype(jnp.result_type(p))

    return jax.tree.map(leaf, direction, params, is_leaf=is_none)


def contract_rows(weights: jax.Array, rows: PyTree) -> PyTree:
    """weights[..., n] times stacked rows [n, ...], in at least float32."""

    def leaf(v):
        if v.shape[0] != 1:
            return contract(weights, v)
        # Elementwise: fuses with drawing, and with the update.
        wide = wide_dtype(v.dtype)
        scale = weights.reshape(weights.shape[:-1] + (1,) * (v.ndim - 1))
        return scale.astype(wide) * v[0].astype(wide)

    return jax.tree.map(leaf, rows)


def any_number(num_directions: int) -> None:
    """Accepts any number of directions."""


def from_rows(
    row: Row,
    *,
    check: Callable[[int], None] = any_number,
    design: Design = "independent",
) -> Sampler:
    """Makes a sampler from a function that draws one row, E[v v^T] = I.

    Args:
      row, check, design: as in :class:`Sampler`.

    Returns:
      A sampler whose rows may be held: of ``from_rows(lazy(base).row)`` they are.

    Raises:
      ValueError: if row is not callable, or design is not known.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> def laplace(key, k, num_directions, x):  # variance 1 in each entry
      ...     return jax.random.laplace(jax.random.fold_in(key, k), x.shape) / 2**0.5
      >>> sampler = zojax.perturbations.from_rows(laplace)
      >>> sampler(jax.random.key(0), 0, 1, jnp.ones(4)).shape
      (4,)

    Source: none; the contract between samplers and queries.
    """
    if not callable(row):
        raise ValueError(f"row must be a function that draws a row, got {row!r}")
    if not callable(check):
        accepted = "a function of the number of directions"
        raise ValueError(f"check must be {accepted}, got {check!r}")
    check_option("design", design, DESIGNS)

    def line(key, k, num_directions, params):
        direction = row(key, k, num_directions, params)
        return lambda scale: perturb(params, direction, scale)

    def combine(weights, key, ks, num_directions, params):
        rows = stacked_rows(row, key, ks, num_directions, params)
        return contract_rows(weights, rows)

    as_it_is = lambda value_fn: value_fn
    return Sampler(row, line, combine, as_it_is, check, design)
