"""Perturbed parameters that are drawn where they are used."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zojax._base import PyTree, Sampler, wide_dtype
from zojax.perturbations._noise import (
    cast_like,
    draw_slices,
    leaf_keys,
    slice_keys,
    trainable,
)
from zojax.perturbations.composed import broadcast_mask, check_mask

__all__ = ["PerturbedArray", "lazy", "materialize"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["value", "key", "scale"],
    meta_fields=["entries"],
)
@dataclasses.dataclass(frozen=True)
class PerturbedArray:
    """value + scale * v, where the noise v is named by a key and not yet drawn.

    A pytree whose leaves share their first axes: those over slices that draw noise of
    their own. So ``lax.scan`` and ``vmap`` go through it slice by slice, and
    ``x[rows]`` picks slices; :func:`materialize` turns what is left into an array.

    Attributes:
      value: f[slices..., ...], the untouched parameter.
      key: uint32[slices..., 2], raw key words.
      scale: f[slices...], mu times the sign of the query.
      entries: (key, shape) -> noise of independent entries.
    """

    value: jax.Array
    key: jax.Array
    scale: jax.Array
    entries: Callable[[jax.Array, tuple[int, ...]], jax.Array]

    def __getitem__(self, rows: Any) -> PerturbedArray:
        """Picks along the first axis, which must be one of slices."""
        if self.key.ndim == 1:
            raise IndexError(
                "this PerturbedArray is one slice: index zojax.materialize(x), or name"
                " its leaf in lazy(..., stacked)"
            )
        if isinstance(rows, tuple) and len(rows) > 1:
            raise IndexError("only the first axis of a PerturbedArray can be indexed")
        return jax.tree.map(lambda leaf: leaf[rows], self)


def _noise(array: PerturbedArray) -> jax.Array:
    """The noise of each slice."""
    shape = jnp.shape(array.value)[array.key.ndim - 1 :]
    return draw_slices(array.entries, array.key, shape)


def materialize(tree: PyTree) -> PyTree:
    """Draws what is lazy in a pytree: value + scale v, rounded once.

    Arrays pass as they are, so that a model which materializes each part of its params
    just before it uses that part takes both kinds.

    Args:
      tree: pytree of arrays and :class:`PerturbedArray`.

    Returns:
      The pytree with arrays in their place.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> def model(layers, x):  # layers f[L, n, n]
      ...     body = lambda x, layer: (x @ zojax.materialize(layer), None)
      ...     return jnp.sum(jax.lax.scan(body, x, layers)[0])
      >>> print(model(jnp.stack([jnp.eye(2)] * 3), jnp.ones(2)))  # plain arrays
      2.0
      >>> sampler = zojax.perturbations.lazy(zojax.perturbations.rademacher(), True)
      >>> values, _ = zojax.evaluate(lambda layers: model(layers, jnp.ones(2)),
      ...     jnp.stack([jnp.eye(2)] * 3), sampler, jax.random.key(0), 1, 1e-3)
      >>> values.shape
      (1, 1)

    Source: none; seed replay (arXiv 2305.17333) inside the forward pass.
    """

    def leaf(x):
        if not isinstance(x, PerturbedArray):
            return x
        dtype = jnp.result_type(x.value)
        wide = wide_dtype(dtype)
        shape = x.scale.shape + (1,) * (jnp.ndim(x.value) - x.scale.ndim)
        scale = jnp.asarray(x.scale, wide).reshape(shape)
        # The direction is rounded to the dtype of params, as other samplers' are.
        noise = _noise(x).astype(dtype).astype(wide)
        return (jnp.asarray(x.value, wide) + scale * noise).astype(dtype)

    return jax.tree.map(leaf, tree, is_leaf=lambda x: isinstance(x, PerturbedArray))


def lazy(
    base: Sampler, stacked: PyTree | Callable[[PyTree], PyTree] = False
) -> Sampler:
    """Directions that are drawn where they are used, never held whole.

    With this sampler, an estimator gives value_fn no perturbed copy: trainable leaves
    are :class:`PerturbedArray`, to be drawn with :func:`zojax.materialize` where they
    are used, for example one layer at a time inside a ``lax.scan`` over layers. The
    memory of a step is then that of the forward pass.

        def body(x, layer):
            layer = zojax.materialize(layer)
            ...
        x, _ = jax.lax.scan(body, embed[tokens], params["layers"])

    A leaf that is ``stacked`` draws each slice along its first axis from a key of its
    own, as layers under a scan need, or a table of which few rows are used
    (``materialize(embed[tokens])``); others are drawn whole.

    Args:
      base: gaussian() or rademacher(): the noise of independent entries.
      stacked: pytree prefix of bools, True where the first axis is one of slices, or a
        function params -> such a pytree.

    Returns:
      A sampler of independent rows distributed as those of base (of other values where
      stacked). With ``chunk_size=None`` the queries of a step run together and share
      each slice's noise; with 1 they take turns, at the memory of one.

    Raises:
      ValueError: for a base whose entries are not independent, or a mask that holds
        anything but bools or does not fit params.

    Example:
      >>> import jax, jax.numpy as jnp, optax, zojax
      >>> sampler = zojax.perturbations.lazy(zojax.perturbations.rademacher(), True)
      >>> f = lambda p: jnp.sum(zojax.materialize(p["table"][jnp.array([0, 2])]) ** 2)
      >>> opt = zojax.mezo(1e-2, key=0, sampler=sampler)
      >>> params = {"table": jnp.ones((4, 3))}
      >>> updates, state = opt.update(None, opt.init(params), params, value_fn=f)
      >>> params = optax.apply_updates(params, updates)
      >>> bool(f(params) < 6)
      True

    Source: seed replay, arXiv 2305.17333, Algorithm 1, slice by slice.
    """
    entries = getattr(base, "entries", None)
    if entries is None:
        raise ValueError(
            "base must be gaussian() or rademacher(), samplers whose entries are"
            f" independent, got {base!r}"
        )
    if not callable(stacked):
        check_mask("stacked", stacked)

    def view(key, k, num_directions, params, scale):
        del num_directions
        leaves = trainable(params)
        if not leaves:
            return params
        flags = jax.tree.leaves(broadcast_mask("stacked", stacked, params))
        keys = leaf_keys(key, k, [name for name, _ in leaves])
        arrays = []
        for (name, leaf), row_key, flag in zip(leaves, keys, flags, strict=True):
            leaf, leaf_scale = jnp.asarray(leaf), jnp.asarray(scale)
            if flag:
                if jnp.ndim(leaf) == 0:
                    raise ValueError(
                        f"stacked must be False at the scalar params{name}"
                    )
                number = jnp.shape(leaf)[0]
                row_key = slice_keys(row_key, number)
                leaf_scale = jnp.full(number, leaf_scale)
            arrays.append(
                PerturbedArray(leaf, jax.random.key_data(row_key), leaf_scale, entries)
            )
        return jax.tree.unflatten(jax.tree.structure(params), arrays)

    def draw(key, k, num_directions, params):
        arrays = view(key, k, num_directions, params, 0.0)
        noise = jax.tree.map(
            lambda x: _noise(x).astype(wide_dtype(jnp.result_type(x.value))),
            arrays,
            is_leaf=lambda x: isinstance(x, PerturbedArray),
        )
        return cast_like(noise, params)

    draw.view = view
    return draw
