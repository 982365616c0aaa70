"""Directions aligned with a guide that is drawn again from its keys, never held."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from zojax import _loops as loops
from zojax._keys import purpose_key
from zojax._numerics import PyTree, reciprocal, total, wide_dtype, zeros_at
from zojax.perturbations._lazy import (
    PerturbedArray,
    Term,
    add_term,
    materialize,
    name_of,
)
from zojax.perturbations._noise import fair_signs
from zojax.perturbations._sampler import Sampler, from_rows


class Replayed(NamedTuple):
    """Aligned directions v_k = x_scale_k x_k + guide_scale_k a, K of one step."""

    rows: PyTree  # the x_k: at each leaf a Term of K directions, None where frozen
    guide: PyTree  # a = sum_j w_j u_j / max|w|, likewise
    peak: jax.Array  # f[], max|w|; 1 where the guide is zero or not finite
    x_scale: jax.Array  # f[K]
    guide_scale: jax.Array  # f[K]


_is_term_or_none = lambda x: x is None or isinstance(x, Term)


def _map_terms(function: Callable, *trees: PyTree) -> PyTree:
    """Maps over leaves, terms and frozen ones (None) among them."""
    return jax.tree.map(function, *trees, is_leaf=_is_term_or_none)


def _terms(
    sampler: Sampler, key: jax.Array, num_directions: int, params: PyTree
) -> PyTree:
    """All directions, at each leaf one Term with scales of 1."""
    terms = cast(Callable[..., PyTree], sampler.terms)  # dap() refuses others
    one = lambda k: terms(key, k, num_directions, params)
    stacked = jax.vmap(one)(jnp.arange(num_directions))

    # [K, slices..., 1] -> [slices..., K]
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2)[..., 0], stacked)


def _leaf_products(
    guide: Term, rows: Term, p: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(a . a, x_k . a f[K], x_k . x_k f[K]) at a leaf p, a slice at a time."""
    axes = guide.num_axes
    dtype = jnp.result_type(p)
    wide = wide_dtype(dtype)

    def in_slice(parts):
        guide, rows, p = parts
        a = add_term(zeros_at(jnp.asarray(p, wide)), guide, dtype)

        def products(row):
            x = jax.tree.map(lambda x: x[None], row).draw(0, a, dtype).astype(wide)
            return jnp.sum(x * a), jnp.sum(x * x)

        return jnp.sum(a * a), *loops.map_rows(products, rows)

    if not axes:
        return in_slice((guide, rows, p))
    number = math.prod(jnp.shape(p)[:axes])
    flat = jax.tree.map(
        lambda x: jnp.reshape(x, (number, *jnp.shape(x)[axes:])), (guide, rows, p)
    )
    return jax.tree.map(lambda x: x.sum(axis=0), loops.map_rows(in_slice, flat))


def replay_aligned(
    weights: jax.Array,
    sampler: Sampler,
    key: jax.Array,
    base: Sampler,
    aligned_key: jax.Array,
    num_directions: int,
    params: PyTree,
    *,
    fixed_length: bool = False,
) -> Replayed:
    """Aligns directions with a = sum_j w_j u_j, of which only keys and w are kept.

    The directions are those of ``aligned(a, base)`` to rounding. Each is a combination
    of x_k and the u_j, whose coefficients need no more than a . a, x_k . a and
    x_k . x_k: one pass over the noise, which holds two slices. Both samplers are
    lazy(...), restricted to the same leaves or not at all.

    Source: arXiv 2510.19975, Algorithm 1; seed replay, arXiv 2305.17333.
    """
    peak = jnp.max(jnp.abs(weights))
    usable = jnp.isfinite(peak) & (peak > 0)
    peak = jnp.where(usable, peak, 1)
    bounded = jnp.where(usable, weights / peak, 0)
    scaled = lambda term: None if term is None else term.times(bounded)
    guide = _map_terms(scaled, _terms(sampler, key, len(weights), params))
    rows = _terms(base, aligned_key, num_directions, params)

    def products(a, x, p):
        if a is None:
            return None
        if a.num_axes != x.num_axes:
            accepted = "lazy(...) with the same leaves stacked"
            found = f"others at a leaf of shape {jnp.shape(p)}"
            raise ValueError(f"sampler and base must be {accepted}, got {found}")
        return _leaf_products(a, x, p)

    by_leaf = jax.tree.leaves(_map_terms(products, guide, rows, params))
    with_itself, along, squares = (total(by_leaf[i::3]) for i in range(3))
    length = jnp.sqrt(with_itself)
    along = jnp.broadcast_to(
        along * reciprocal(length), num_directions
    )  # x_k . a / |a|
    sign_key = purpose_key(aligned_key, "aligned")
    sign = lambda k: fair_signs(jax.random.fold_in(sign_key, k), ())
    xi = jax.vmap(sign)(jnp.arange(num_directions)).astype(along.dtype)
    x_scale = jnp.ones_like(along)
    if fixed_length:
        size = lambda a, p: None if a is None else jnp.size(p)
        d = sum(jax.tree.leaves(_map_terms(size, guide, params)))
        projected = jnp.sqrt(jnp.maximum(squares - along**2, 0))
        rest = jnp.sqrt(jnp.where(length > 0, max(d - 1, 0), d).astype(along.dtype))
        x_scale = xi * rest * reciprocal(projected)
    guide_scale = (xi - x_scale * along) * reciprocal(length)
    return Replayed(rows, guide, peak, x_scale, guide_scale)


def replayed_sampler(directions: Replayed) -> Sampler:
    """The aligned directions as a sampler, which needs no key: they have their own."""
    rows, guide, _, *scales = directions

    def line(key, k, num_directions, params):
        def moved(scale):
            of_x, of_guide = (jnp.asarray(scale, x.dtype) * x[k] for x in scales)

            def leaf(path, x, a, p):
                if x is None:
                    return p
                one = jax.tree.map(lambda x: x[..., k, None], x)
                along = a.times(of_guide)
                terms = one.times(of_x), along
                return PerturbedArray(jnp.asarray(p), terms, name_of(path))

            return jax.tree_util.tree_map_with_path(
                leaf, rows, guide, params, is_leaf=_is_term_or_none
            )

        return moved

    def row(key, k, num_directions, params):
        zero = lambda x, p: None if x is None else jnp.zeros_like(p)
        zeros = _map_terms(zero, rows, params)
        return materialize(line(key, k, num_directions, zeros)(1.0))

    return from_rows(row)._replace(line=line, holds_rows=False)


def combine_replayed(
    weights: jax.Array, guide_weight: Any, directions: Replayed, params: PyTree
) -> PyTree:
    """sum_k weights_k v_k + guide_weight sum_j w_j u_j, in the memory of the result."""
    x_scale, guide_scale, peak, guide_weight = (
        jnp.asarray(x, weights.dtype)
        for x in (*directions[3:], directions.peak, guide_weight)
    )
    of_rows = weights * x_scale
    of_guide = jnp.sum(weights * guide_scale)
    of_guide += guide_weight * peak

    def leaf(x, a, p):
        if x is None:
            return None
        dtype = jnp.result_type(p)
        zeros = zeros_at(jnp.asarray(p, wide_dtype(dtype)))
        total = add_term(zeros, x.times(of_rows), dtype)
        total = add_term(total, a.times(of_guide), dtype)
        return jnp.where(jnp.isfinite(total), total, 0)

    return _map_terms(leaf, directions.rows, directions.guide, params)
