"""Samplers made from samplers: aligned with a guide, restricted to some leaves."""

import jax
import jax.numpy as jnp
import numpy as np

from zojax._checks import check_flag
from zojax._keys import purpose_key
from zojax._numerics import PyTree, normalize, reciprocal, tree_dot
from zojax.perturbations import _sampler as samplers
from zojax.perturbations._independent import gaussian
from zojax.perturbations._noise import fair_signs


def check_mask(name: str, mask: PyTree) -> None:
    """Raises unless every leaf of a mask is a bool."""
    for leaf in jax.tree.leaves(mask):
        if not isinstance(leaf, (bool, np.bool_)):
            accepted = "a pytree prefix of bools or a function returning one"
            raise ValueError(f"{name} must be {accepted}, got a leaf {leaf!r}")


def broadcast_mask(name: str, mask: PyTree, params: PyTree) -> PyTree:
    """Returns a bool for each leaf of params from a prefix, or a function."""
    tree = mask(params) if callable(mask) else mask
    check_mask(name, tree)
    spread = lambda flag, sub: jax.tree.map(lambda _: flag, sub)
    try:
        return jax.tree.map(spread, tree, params)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} must be a pytree prefix of params, got"
            f" {jax.tree.structure(tree)} for {jax.tree.structure(params)}"
        ) from error


def aligned(
    guide: PyTree, base: samplers.Sampler | None = None, *, fixed_length: bool = False
) -> samplers.Sampler:
    """Directionally aligned perturbations (DAP) around a guide a.

    Projects a base direction X onto the hyperplane a . v = xi |a|, xi a fair sign:

        v = X - (X . a) a / |a|^2 + xi a / |a|,    so (v . a)^2 = |a|^2.

    With ``fixed_length``, w the unit vector of the projected X, also |v|^2 = d:

        v = xi sqrt(d) [sqrt(1 - 1/d) w + a / (|a| sqrt(d))].

    Products and norms are global over the tree. Where the guide is zero or not finite,
    v = X (for fixed length sqrt(d) X / |X|): isotropic, no alignment.

    Args:
      guide: pytree like params (at least at trainable leaves), of any finite scale: an
        estimate of the gradient, independent of the noise of ``base``.
      base: sampler of X whose rows may be held; gaussian() by default.
      fixed_length: E[v v^T] = I then needs a rotation-invariant base.

    Returns:
      A sampler, of independent rows if base has them; MSE limit |g|^2 (d-1)/K for the
      exact guide, with less error on the large entries.

    Raises:
      ValueError: for a base that is no sampler, or whose rows may not be held; for a
        guide that has not the shapes of params, where a row is drawn.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> a = jnp.array([3.0, 0.0, 4.0])
      >>> v = zojax.perturbations.aligned(a)(jax.random.key(0), 0, 1, a)
      >>> print(round(float(jnp.dot(v, a) ** 2), 3))
      25.0

    Source: arXiv 2510.19975, Algorithm 1 (delta = 1).
    """
    base = gaussian() if base is None else base
    samplers.check_sampler("base", base)
    samplers.check_holds_rows("base", base)
    check_flag("fixed_length", fixed_length)

    def draw(key, k, num_directions, params):
        x = base(key, k, num_directions, params)
        unit, usable = normalize(guide, x)
        sign_key = jax.random.fold_in(purpose_key(key, "aligned"), k)
        along = tree_dot(x, unit)
        xi = fair_signs(sign_key, ()).astype(along.dtype)

        def combine(x_scale, unit_scale):
            def leaf(x, a):
                moved = jnp.asarray(x_scale, a.dtype) * x.astype(a.dtype)
                return (moved + jnp.asarray(unit_scale, a.dtype) * a).astype(x.dtype)

            return jax.tree.map(leaf, x, unit)

        if not fixed_length:
            return combine(1.0, xi - along)
        d = sum(leaf.size for leaf in jax.tree.leaves(x))
        across = lambda x, a: x.astype(a.dtype) - along.astype(a.dtype) * a
        projected = jax.tree.map(across, x, unit)
        norm = jnp.sqrt(tree_dot(projected, projected))
        length = jnp.sqrt(jnp.where(usable, max(d - 1, 0), d).astype(along.dtype))
        stretch = xi * length * reciprocal(norm)
        return combine(stretch, xi - stretch * along)

    def at_step(key, count):
        return aligned(
            guide, samplers.sampler_at(base, key, count), fixed_length=fixed_length
        )

    design: samplers.Design = "independent" if base.design == "independent" else "joint"
    sampler = samplers.from_rows(draw, check=base.check, design=design)
    return sampler if base.at_step is None else sampler._replace(at_step=at_step)


def restrict(sampler: samplers.Sampler, mask: PyTree) -> samplers.Sampler:
    """Restricts a sampler to the trainable leaves of params.

    Frozen leaves are not copied, not perturbed, get a zero gradient and do not count
    in d; the other leaves draw what they would draw without them.

    Args:
      sampler: any sampler.
      mask: a pytree prefix of bools, True where trainable, or a function params -> one.

    Returns:
      A sampler whose directions hold None at frozen leaves.

    Raises:
      ValueError: if the mask holds anything but bools, or does not fit params.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> signs = zojax.perturbations.rademacher()
      >>> sampler = zojax.perturbations.restrict(signs, (True, False))
      >>> sampler(jax.random.key(0), 0, 1, (jnp.ones(2), jnp.ones(3)))[1] is None
      True

    Source: the convention of optax.masked.
    """
    samplers.check_sampler("sampler", sampler)
    if not callable(mask):
        check_mask("mask", mask)

    def trainable(params):
        flags = broadcast_mask("mask", mask, params)
        return jax.tree.map(lambda keep, leaf: leaf if keep else None, flags, params)

    def row(key, k, num_directions, params):
        return sampler.row(key, k, num_directions, trainable(params))

    def line(key, k, num_directions, params):
        of_trainable = sampler.line(key, k, num_directions, trainable(params))
        flags = broadcast_mask("mask", mask, params)
        choose = lambda keep, leaf, moved: moved if keep else leaf
        return lambda scale: jax.tree.map(choose, flags, params, of_trainable(scale))

    def combine(weights, key, ks, num_directions, params):
        return sampler.combine(weights, key, ks, num_directions, trainable(params))

    def terms(key, k, num_directions, params):
        return sampler.terms(key, k, num_directions, trainable(params))

    def at_step(key, count):
        return restrict(samplers.sampler_at(sampler, key, count), mask)

    return sampler._replace(
        row=row,
        line=line,
        combine=combine,
        entries=None,  # they know of no mask
        terms=None if sampler.terms is None else terms,
        at_step=None if sampler.at_step is None else at_step,
    )
