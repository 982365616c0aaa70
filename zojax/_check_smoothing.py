"""Whether a smoothing survives the rounding of the parameters."""

import warnings

import jax
import jax.numpy as jnp

from zojax._checks import check_number
from zojax._keys import canonical_key
from zojax._numerics import PyTree, is_none, wide_dtype
from zojax._objective import check_params
from zojax.perturbations import rademacher
from zojax.perturbations._sampler import Sampler, check_sampler, perturb


def check_smoothing(
    params: PyTree,
    smoothing: float,
    *,
    key: jax.Array | int,
    sampler: Sampler | None = None,
    minimum: float = 0.9,
) -> float:
    """Warns if the rounding of params swallows the perturbation.

    Measures <round(theta + mu v) - theta, v> / (mu |v|^2), the share of a perturbation
    that the dtype can hold: 1 if nothing is lost. Near weights of 1, mu should be 1e-2
    or more in bfloat16, 1e-3 in float16, 1e-6 in float32. For use once, outside jit.

    Args:
      params, smoothing: pytree at its true scale, and mu > 0, in units of params.
      key, sampler: a key or an int seed; rademacher() by default.
      minimum: the share below which a UserWarning is issued.

    Returns:
      The share, a float.

    Raises:
      ValueError: for an argument out of its range.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> share = zojax.check_smoothing(jnp.ones(64, jnp.bfloat16), 1e-1, key=0)
      >>> share > 0.9
      True

    Source: rounding to nearest; MeZO in bfloat16, arXiv 2305.17333.
    """
    sampler = rademacher() if sampler is None else sampler
    check_sampler("sampler", sampler)
    check_params(params)
    check_number("smoothing", smoothing, 0.0, schedule=False)
    direction = sampler(canonical_key(key), 0, 1, params)
    moved = perturb(params, direction, smoothing)

    def leaf(v, p, q):
        if v is None:
            return jnp.zeros(2)
        wide = wide_dtype(v.dtype)
        v, p, q = v.astype(wide), jnp.asarray(p, wide), q.astype(wide)
        return jnp.stack([jnp.sum((q - p) * v), jnp.sum(v * v)])

    sums = jax.tree.map(leaf, direction, params, moved, is_leaf=is_none)
    moved_by, norm = sum(jax.tree.leaves(sums), jnp.zeros(2))
    share = float(moved_by / (smoothing * norm)) if norm > 0 else 1.0
    if share < minimum:
        warnings.warn(
            f"smoothing={smoothing:g} is too small for these parameters: rounding keeps"
            f" {share:.0%} of a perturbation; use a larger smoothing or a wider dtype",
            stacklevel=2,
        )
    return share
