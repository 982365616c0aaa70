"""V, the matrix of perturbation directions: named by a key, never held as a whole.

With a chunk size rows are drawn again where they are summed, so that only so many are
alive at once; with an axis name each device of a mesh axis draws only its own. Neither
changes the random stream.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zojax import _loops as loops
from zojax._checks import check_int, check_like, check_spreading, paired
from zojax._keys import canonical_key, step_key
from zojax._mesh_axis import over, zeros_beside
from zojax._numerics import PyTree, is_none, wide_dtype
from zojax._objective import check_params
from zojax.perturbations import _sampler as samplers


@dataclasses.dataclass(frozen=True, eq=False)  # hashable, as a key is not
class Directions:
    """V, a K x d matrix of perturbation directions.

    Args:
      sampler: how row k is drawn from (key, k), see zojax.perturbations.
      key: a threefry key (typed or uint32[2]) or an int seed; held typed.
      num_directions: K >= 1.
      chunk_size: how many rows live at once; None for all.
      axis_name: mesh axis that the rows are spread over, K/n to a device: an axis of
        shard_map, or of the mesh in force (jax.set_mesh); in a jitted step, or each
        call compiles. None for none.

    Raises:
      ValueError: for an argument out of its range.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> V = zojax.Directions(zojax.perturbations.rademacher(), 0, 3)
      >>> zojax.evaluate(jnp.sum, jnp.zeros(4), V, smoothing=0.1)[0].shape
      (3, 1)

    Source: seed replay, arXiv 2305.17333.
    """

    sampler: samplers.Sampler
    key: Any
    num_directions: int
    chunk_size: int | None = None
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Checks, and makes the key a typed one."""
        samplers.check_sampler("sampler", self.sampler)
        check_int("num_directions", self.num_directions, 1)
        check_spreading(self.chunk_size, self.axis_name)
        self.sampler.check(self.num_directions)
        object.__setattr__(self, "key", canonical_key(self.key))

    def _at(self, key: jax.Array) -> "Directions":
        """The same rows, their key an argument of a program of one device."""
        return dataclasses.replace(self, key=key)


def check_directions(directions: Directions) -> None:
    """Raises unless the argument is a V."""
    if not isinstance(directions, Directions):
        accepted = "a zojax.Directions(sampler, key, num_directions)"
        raise ValueError(f"directions must be {accepted}, got {directions!r}")


def direction_shapes(
    params: PyTree, V: Directions, leading: tuple[int, ...] = ()
) -> PyTree:
    """Shapes of what :func:`combine` returns; raises where params do not fit."""
    key, k = canonical_key(0), jnp.zeros((), jnp.int32)
    like = jax.eval_shape(lambda: V.sampler.row(key, k, V.num_directions, params))
    wide = lambda v: jax.ShapeDtypeStruct(leading + v.shape, wide_dtype(v.dtype))
    return jax.tree.map(wide, like)


def dimension(params: PyTree, V: Directions) -> int:
    """d, the number of trainable entries."""
    return sum(leaf.size for leaf in jax.tree.leaves(direction_shapes(params, V)))


def direction_like(
    params: PyTree, V: Directions, leading: tuple[int, ...] = ()
) -> PyTree:
    """Zeros of the shape and place of what :func:`combine` returns."""

    def leaf(v, p):
        if v is None:
            return None
        return jnp.broadcast_to(jnp.zeros_like(p, v.dtype), v.shape)

    shapes = direction_shapes(params, V, leading)
    return jax.tree.map(leaf, shapes, params, is_leaf=is_none)


def map_directions(
    function: Callable[[PyTree], PyTree], params: PyTree, directions: Directions
) -> PyTree:
    """Applies a function to each direction: stacked function(v_k), k = 0..K-1.

    Args:
      function: direction -> pytree of arrays (scalars, as a rule).
      params, directions: as in :func:`combine`.

    Returns:
      The results, with a leading axis K.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> V = zojax.Directions(zojax.perturbations.rademacher(), 0, 2)
      >>> print(zojax.queries.map_directions(lambda v: jnp.sum(v**2), jnp.ones(5), V))
      [5. 5.]

    Source: one row of V at a time, as in arXiv 2305.17333 (seed replay).
    """
    check_directions(directions)
    V, spread = directions, over(directions.axis_name)

    def apply(params, key):
        ks = spread.own_ks(V.num_directions)
        of_row = lambda k: function(V.sampler.row(key, k, V.num_directions, params))
        results = samplers.map_leading(of_row, ks, len(ks), V.chunk_size)
        return spread.from_all(results, V.num_directions)

    return spread.run(apply, params, V.key)


def drop_non_finite(tree: PyTree) -> PyTree:
    """Drops sums that overflowed, so that they never enter a state."""
    return jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), tree)


def _own_sum(weights: jax.Array, params: PyTree, V: Directions) -> PyTree:
    """The part of V^T w whose rows are this device's, in chunks."""
    spread, number = over(V.axis_name), V.num_directions
    ks, mine = spread.own_ks(number), spread.own(weights)
    if V.chunk_size is None or V.chunk_size >= len(ks):
        return V.sampler.combine(mine, V.key, ks, number, params)

    # Rows beyond K/n, where it is no multiple of the chunk, are drawn with weight zero.
    size = V.chunk_size
    num_chunks = -(-len(ks) // size)
    padding = num_chunks * size - len(ks)
    padded = jnp.pad(mine, [(0, 0)] * (mine.ndim - 1) + [(0, padding)])

    def of_chunk(chunk):
        start = chunk * size
        some = jax.lax.dynamic_slice_in_dim(padded, start, size, axis=-1)
        chunk_ks = ks[0] + start + jnp.arange(size)
        return V.sampler.combine(some, V.key, chunk_ks, number, params)

    like = direction_shapes(params, V, weights.shape[:-1])
    zeros = zeros_beside(like, params, mine, ks, jax.random.key_data(V.key))
    return loops.sum_parts(of_chunk, zeros, jnp.arange(num_chunks), size)


def checked_weights(weights: jax.Array, V: Directions, ndim: int | None) -> jax.Array:
    """Weights f[..., K], one for each direction."""
    check_directions(V)
    weights = jnp.asarray(weights)
    fits = weights.ndim and weights.shape[-1] == V.num_directions
    if not fits or ndim not in (None, weights.ndim):
        shape = {None: "[..., K]", 1: "[K]", 2: "[N, K]"}[ndim]
        accepted = f"the shape {shape} with K = {V.num_directions} directions"
        raise ValueError(f"weights must have {accepted}, got {weights.shape}")
    return weights


def combine(weights: jax.Array, params: PyTree, directions: Directions) -> PyTree:
    """Recombines directions: V^T w = sum_k w_k v_k.

    Args:
      weights, params: f[..., K], and a pytree whose values are not read.
      directions: V, as the values were asked along.

    Returns:
      A pytree like params in at least float32, None at frozen leaves, with the leading
      axes of weights; :func:`as_gradient` casts it to params.

    Raises:
      ValueError: for weights that are not one for each direction.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> V = zojax.Directions(zojax.perturbations.orthogonal(), 0, 2)
      >>> v = zojax.combine(jnp.ones(2), jnp.ones(2), V)
      >>> print(jnp.sum(v**2))  # |v_0 + v_1|^2 = 2d
      4.0

    Source: seed replay, arXiv 2305.17333, Algorithm 1.
    """
    weights = checked_weights(weights, directions, None)
    V, spread = directions, over(directions.axis_name)
    add = lambda w, params, key: spread.total(_own_sum(w, params, V._at(key)))
    return drop_non_finite(spread.run(add, weights, params, V.key))


def combine_steps(
    weights: jax.Array, params: PyTree, V: Directions, steps: jax.Array
) -> PyTree:
    """sum_n V_n^T w_n for weights f[N, K], steps i32[N] and the key of their run.

    Step n was asked with fold_in(key, n); one step at a time is drawn again.
    """
    weights, spread = checked_weights(weights, V, 2), over(V.axis_name)

    def add(weights, params, words, steps):
        def of_step(step):
            step_weights, count = step
            then = samplers.sampler_at(V.sampler, words, count), step_key(words, count)
            drawn = dataclasses.replace(V, sampler=then[0], key=then[1])
            return _own_sum(step_weights, params, drawn)

        like = direction_shapes(params, V)
        ks = spread.own_ks(V.num_directions)
        zeros = zeros_beside(like, params, weights, words, steps, ks)
        sums = loops.sum_parts(of_step, zeros, (weights, steps), len(ks))
        return spread.total(sums)

    words = jax.random.key_data(V.key)
    return drop_non_finite(spread.run(add, weights, params, words, jnp.asarray(steps)))


def add_directions(
    params: PyTree, weights: jax.Array, directions: Directions
) -> PyTree:
    """Moves params along the directions: theta + V^T w, the sum never being held.

    One direction at a time is drawn and added where params lie, so that a jitted step
    that donates params needs no vector beside them. It is what SGD with :func:`combine`
    does (w = -lr times the weights), rounded to the dtype of params K times.

    Args:
      params, weights: pytree, and f[K], learning rate and sign included.
      directions: V, as the values were asked along, on no mesh axis.

    Returns:
      A pytree like params; an entry that would overflow stays.

    Raises:
      ValueError: for weights that are not one for each direction, or an axis_name.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> V = zojax.Directions(zojax.perturbations.rademacher(), 0, 2)
      >>> x, w = jnp.zeros(3), jnp.array([1.0, -0.5])
      >>> moved = zojax.queries.add_directions(x, w, V)
      >>> bool((moved == zojax.combine(w, x, V)).all())
      True

    Source: seed replay, arXiv 2305.17333, Algorithm 1, over K directions.
    """
    check_params(params)
    weights, V = checked_weights(weights, directions, 1), directions
    if V.axis_name is not None:
        raise ValueError(f"axis_name must be None to add there, got {V.axis_name!r}")
    kept = lambda new, old: jnp.where(jnp.isfinite(new), new, old)

    def add(params, one):
        row = V.sampler.row(V.key, one[0], V.num_directions, params)
        return jax.tree.map(kept, samplers.perturb(params, row, one[1]), params), None

    params = jax.tree.map(jnp.asarray, params)
    return loops.scan(add, params, (jnp.arange(V.num_directions), weights))[0]


def as_gradient(sums: PyTree, params: PyTree) -> PyTree:
    """Casts sums to a gradient like params: zero at frozen leaves, always finite.

    Args:
      sums, params: what :func:`combine` returns, without leading axes; pytree.

    Returns:
      A pytree like params. What does not fit a dtype saturates at its largest number.

    Raises:
      ValueError: for sums of another structure or of other shapes.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> params = jnp.ones(2, jnp.bfloat16), jnp.ones(3)
      >>> head, body = zojax.as_gradient((jnp.ones(2), None), params)
      >>> head.dtype.name, body.tolist()
      ('bfloat16', [0.0, 0.0, 0.0])

    Source: none; the contract between estimators and optax.
    """

    def leaf(path, x, p):
        if x is None:
            return jax.tree.map(jnp.zeros_like, p)
        check_like(f"sums{path}", x, p)
        dtype = jnp.result_type(p)
        largest = jnp.asarray(jnp.finfo(dtype).max, x.dtype)
        return jnp.clip(jnp.where(jnp.isnan(x), 0, x), -largest, largest).astype(dtype)

    new = [leaf(*parts) for parts in paired("sums", sums, params)]
    structure = jax.tree.structure(sums, is_leaf=is_none)
    return jax.tree.unflatten(structure, new)
