"""Perturbed parameters that are drawn where they are used."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zojax import _docs as docs
from zojax import _loops as loops
from zojax._keys import KEY_IMPL, slice_keys
from zojax._numerics import PyTree, wide_dtype
from zojax.perturbations._composed import broadcast_mask, check_mask
from zojax.perturbations._entries import placed_like, trainable
from zojax.perturbations._noise import (
    NUM_SHARED,
    Entries,
    draw_stack,
    map_keys,
    shares_keys,
)
from zojax.perturbations._sampler import Sampler, entries_of, from_rows


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["key", "which", "scale"],
    meta_fields=["entries", "shared"],
)
@dataclasses.dataclass(frozen=True)
class Term:
    """sum_t scale_t u_t, T directions at one leaf, named by their keys."""

    # Typed, so that arithmetic over the leaves of params fails instead of adding words.
    key: jax.Array  # key[slices..., T]
    which: jax.Array  # u32[slices..., T], of the slices that share a key
    scale: jax.Array  # f[slices..., T]
    entries: Entries
    shared: bool  # whether slices share keys

    @property
    def num_axes(self) -> int:
        """How many axes are of slices."""
        return self.scale.ndim - 1

    def draw(self, t: int, like: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """u_t at a leaf like this, rounded to its dtype as samplers do."""
        shape = jnp.shape(like)[self.num_axes :]

        def one(words, which):
            key = jax.random.wrap_key_data(words, impl=KEY_IMPL)
            if self.shared:
                return self.entries.draw_shared(key, shape, which)
            return self.entries.draw(key, shape)

        of_slices = one
        for _ in range(self.num_axes):
            of_slices = jax.vmap(of_slices)
        words = jax.random.key_data(self.key[..., t])
        noise = placed_like(like, of_slices)(words, self.which[..., t])
        return noise.astype(dtype)

    def times(self, factor: jax.Array) -> "Term":
        factor = jnp.asarray(factor, self.scale.dtype)
        return dataclasses.replace(self, scale=self.scale * factor)


def add_term(total: jax.Array, term: Term, dtype: jnp.dtype) -> jax.Array:
    """total + sum_t scale_t u_t, for directions of this dtype, one after the other."""

    def scaled(one):
        scale = jnp.asarray(one.scale, total.dtype)
        noise = one.draw(0, total, dtype).astype(total.dtype)
        shape = scale.shape[:-1] + (1,) * (total.ndim - one.num_axes)
        return scale.reshape(shape) * noise

    if term.scale.shape[-1] == 1:
        return total + scaled(term)
    # Each of the T in turn, as a term of one direction.
    turns = jax.tree.map(lambda x: jnp.moveaxis(x[..., None], -2, 0), term)
    return loops.sum_parts(scaled, total, turns)


class _Name(str):
    """A name for errors, which no two structures differ by."""

    __slots__ = ()
    __eq__ = lambda self, other: isinstance(other, _Name)
    __hash__ = lambda self: 0


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["value", "terms"],
    meta_fields=["name"],
)
@dataclasses.dataclass(frozen=True)
class PerturbedArray:
    """value + scale * v, where the noise v is named by a key and not yet drawn.

    A pytree whose leaves share their first axes, of slices that draw noise of their
    own. So ``lax.scan`` and ``vmap`` go through it slice by slice, and ``x[i]`` picks
    slices; :func:`materialize` turns what is left into an array.
    """

    value: jax.Array  # f[slices..., ...], the untouched parameter
    terms: tuple[Term, ...]  # keys of the noise, and mu times the side of the query
    name: _Name  # where among params

    def __getitem__(self, which: Any) -> "PerturbedArray":
        """Picks along the first axis, which must be one of slices."""
        if self.terms[0].num_axes == 0:
            raise IndexError(
                "this PerturbedArray is one slice: index zojax.materialize(x), or name"
                " its leaf in lazy(..., stacked)"
            )
        if isinstance(which, tuple) and len(which) > 1:
            raise IndexError("only the first axis of a PerturbedArray can be indexed")
        return jax.tree.map(lambda leaf: leaf[which], self)

    def __getattr__(self, attribute: str) -> Any:
        """Names the leaf, where code takes it for an array."""
        if attribute.startswith("__") or attribute in ("value", "terms", "name"):
            raise AttributeError(attribute)
        raise AttributeError(_advice(self.name, f"attribute {attribute!r}"))


def _advice(name: str, what: str) -> str:
    return (
        f"params{name} is perturbed where it is used and has no {what}: a module that"
        " does not know such leaves takes zojax.materialize(params), best a layer at a"
        f" time (in the body of a scan, say); {docs.LAZY}"
    )


def _refuse(what: str) -> Callable[..., Any]:
    """A method that says how such an array is used."""

    def method(self, *_, **__):
        raise TypeError(_advice(self.name, what))

    return method


_ARITHMETIC = ["add", "sub", "mul", "truediv", "floordiv", "mod", "matmul", "pow"]
for _special in (
    *("len", "iter", "array", "jax_array", "neg", "pos", "abs", "float", "bool", "int"),
    *(side + name for name in _ARITHMETIC for side in ("", "r")),
    *("lt", "le", "gt", "ge"),
):
    setattr(PerturbedArray, f"__{_special}__", _refuse(f"__{_special}__"))


_is_term = lambda x: isinstance(x, Term)


def name_of(path: tuple[Any, ...]) -> _Name:
    """Where a leaf is among params."""
    return _Name(jax.tree_util.keystr(path))


def materialize(tree: PyTree) -> PyTree:
    """Draws what is lazy in a pytree: value + scale v, rounded once.

    Arrays pass as they are, so that a model which materializes each part of its params
    just before it is used takes both kinds.

    Args:
      tree: pytree of arrays and :class:`PerturbedArray`.

    Returns:
      The pytree with arrays in their place.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> def model(layers):  # f[L, n, n]
      ...     body = lambda x, layer: (x @ zojax.materialize(layer), None)
      ...     return jnp.sum(jax.lax.scan(body, jnp.ones(2), layers)[0])
      >>> layers = jnp.stack([jnp.eye(2)] * 3)
      >>> print(model(layers))  # plain arrays
      2.0
      >>> sampler = zojax.perturbations.lazy(zojax.perturbations.rademacher(), True)
      >>> V = zojax.Directions(sampler, 0, 1)
      >>> zojax.evaluate(model, layers, V, 1e-3)[0].shape
      (1, 1)

    Source: none; seed replay (arXiv 2305.17333) inside the forward pass.
    """

    def leaf(x):
        if not isinstance(x, PerturbedArray):
            return x
        dtype = jnp.result_type(x.value)
        total = jnp.asarray(x.value, wide_dtype(dtype))
        for term in x.terms:
            total = add_term(total, term, dtype)
        return total.astype(dtype)

    return jax.tree.map(leaf, tree, is_leaf=lambda x: isinstance(x, PerturbedArray))


def lazy(base: Sampler, stacked: PyTree = False) -> Sampler:
    """Directions that are drawn where they are used, never held whole.

    With this sampler value_fn gets no perturbed copy: trainable leaves are
    :class:`PerturbedArray`, to be drawn with :func:`zojax.materialize` where they are
    used, one layer at a time inside a ``lax.scan`` over layers, say. The memory of a
    step is then that of the forward pass.

    A leaf that is ``stacked`` draws each slice along its first axis from a key of its
    own, as layers under a scan need, or a table (``materialize(embed[tokens])``).

    Args:
      base: gaussian() or rademacher(): the noise of independent entries.
      stacked: pytree prefix of bools, True where the first axis is one of slices, or a
        function params -> such a pytree.

    Returns:
      A sampler of independent rows distributed as those of base (of other values where
      stacked). With ``chunk_size=None`` the queries of a step run together and share
      each slice's noise; with 1 they take turns, at the memory of one.

    Raises:
      ValueError: for a base without entries, or a mask that does not fit.

    Example:
      >>> import jax.numpy as jnp, optax, zojax
      >>> sampler = zojax.perturbations.lazy(zojax.perturbations.rademacher(), True)
      >>> f = lambda table: jnp.sum(zojax.materialize(table[jnp.array([0, 2])]) ** 2)
      >>> opt, table = zojax.mezo(1e-2, key=0, sampler=sampler), jnp.ones((4, 3))
      >>> updates, state = opt.update(None, opt.init(table), table, value_fn=f)
      >>> bool(f(optax.apply_updates(table, updates)) < f(table))
      True

    Source: seed replay, arXiv 2305.17333, Algorithm 1, slice by slice.
    """
    entries = entries_of("base", base)
    if not callable(stacked):
        check_mask("stacked", stacked)

    def stacked_leaves(params):
        """Whether each leaf is stacked."""
        flags = jax.tree.leaves(broadcast_mask("stacked", stacked, params))
        for (name, leaf), flag in zip(trainable(params), flags, strict=True):
            if flag and jnp.ndim(leaf) == 0:
                raise ValueError(f"stacked must be False at the scalar params{name}")
        return jax.tree.unflatten(jax.tree.structure(params), flags)

    def terms(key, k, num_directions, params):
        """v_k as a Term of one direction at each leaf."""

        def term(key, leaf, flag):
            which, shared = jnp.zeros((), jnp.uint32), False
            if flag:
                number, *shape = jnp.shape(leaf)
                shared = shares_keys(entries, shape)
                key, which = slice_keys(key, number, NUM_SHARED if shared else 1)
            ones = jnp.ones((*which.shape, 1), wide_dtype(jnp.result_type(leaf)))
            return Term(key[..., None], which[..., None], ones, entries, shared)

        return map_keys(term, key, k, params, stacked_leaves(params))

    def line(key, k, num_directions, params):
        found = terms(key, k, num_directions, params)

        def moved(scale):
            def leaf(path, term, p):
                terms = (term.times(scale),)
                return PerturbedArray(jnp.asarray(p), terms, name_of(path))

            return jax.tree_util.tree_map_with_path(
                leaf, found, params, is_leaf=_is_term
            )

        return moved

    def row(key, k, num_directions, params):
        def noise(key, leaf, flag):
            shape = jnp.shape(leaf)
            draw = lambda key: entries.draw(key, shape)
            if flag:
                draw = lambda key: draw_stack(entries, key, shape[0], shape[1:])
            return placed_like(leaf, draw)(key).astype(jnp.result_type(leaf))

        return map_keys(noise, key, k, params, stacked_leaves(params))

    return from_rows(row)._replace(line=line, terms=terms, holds_rows=False)
