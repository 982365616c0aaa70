"""Query values -> weights of the directions: arrays in, arrays out.

Each function returns weights w[K] such that the gradient estimate is sum_k w_k v_k; the
factors of K and of the smoothing mu are inside. Before a mean is taken an anchor is
subtracted, since the error of an estimate is that of the mean. Values that are not
finite get weight zero and do not enter a mean; means run over what is there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Scalar = jax.Array | float

__all__ = [
    "central",
    "clip",
    "forward",
    "leave_one_out",
    "mean_baseline",
    "optimal_baseline",
]


def _mean_of(differences: jax.Array, smoothing: Scalar) -> jax.Array:
    """differences / (number of finite ones * smoothing), 0 where not finite."""
    finite = jnp.isfinite(differences)
    count = jnp.maximum(finite.sum(), 1).astype(differences.dtype)
    return _masked(jnp.where(finite, differences, 0) / (count * smoothing))


def _anchored(values: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (z, finite, anchor): z = values - the first finite value, 0 elsewhere."""
    flat = values.reshape(-1)
    finite = jnp.isfinite(flat)
    anchor = jnp.where(finite.any(), flat[jnp.argmax(finite)], 0).astype(flat.dtype)
    # A value too far from the anchor to be told in this dtype is left out as well.
    finite &= jnp.isfinite(flat - anchor)
    z = jnp.where(finite, flat - anchor, 0)
    return z.reshape(values.shape), finite.reshape(values.shape), anchor


def _mean(z: jax.Array, finite: jax.Array) -> jax.Array:
    """Mean of the finite entries; dividing first, so that no sum overflows."""
    return jnp.sum(z / jnp.maximum(finite.sum(), 1).astype(z.dtype))


def _masked(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, 0)


def forward(values: jax.Array, at_params: jax.Array, smoothing: Scalar) -> jax.Array:
    """Forward difference: w_k = [f(theta + mu v_k) - f(theta)] / (K mu).

    Args:
      values, at_params, smoothing: f[K] at perturbed points; f[] at params; f[], mu.

    Returns:
      f[K].

    Example:
      >>> import jax.numpy as jnp; from zojax import weights
      >>> print(weights.forward(jnp.array([2.0, 5.0]), jnp.array(1.0), 0.5))
      [1. 4.]

    Source: arXiv 2510.19975, Equation 1.
    """
    return _mean_of(values - at_params, smoothing)


def central(plus: jax.Array, minus: jax.Array, smoothing: Scalar) -> jax.Array:
    """Central difference: w_k = [f(theta + mu v_k) - f(theta - mu v_k)] / (2 K mu).

    Args:
      plus, minus, smoothing: f[K] at theta + mu v_k; f[K] at theta - mu v_k; f[], mu.

    Returns:
      f[K].

    Example:
      >>> import jax.numpy as jnp; from zojax import weights
      >>> print(weights.central(jnp.array([2.0, 5.0]), jnp.array([1.0, 1.0]), 0.5))
      [0.5 2. ]

    Source: SPSA (Spall, 1992); arXiv 2305.17333 (MeZO).
    """
    return _mean_of((plus - minus) / 2, smoothing)


def clip(
    weights: jax.Array, bound: Scalar, num_finite: jax.Array | int | None = None
) -> jax.Array:
    """Bounds each directional derivative: K w_k is kept in [-bound, bound].

    Args:
      weights: f[K], weights of two-point estimates, derivatives over K.
      bound: f[], of a directional derivative.
      num_finite: i[], how many values are finite; K by default.

    Returns:
      f[K].

    Example:
      >>> import jax.numpy as jnp; from zojax import weights
      >>> print(weights.clip(jnp.array([4.0, -0.5]), 3.0))
      [ 1.5 -0.5]

    Source: clipping of gradients (arXiv 1211.5063), along one direction.
    """
    number = weights.shape[-1] if num_finite is None else num_finite
    number = jnp.maximum(number, 1).astype(weights.dtype)
    limit = jnp.asarray(bound, weights.dtype) / number
    return jnp.clip(weights, -limit, limit)


def mean_baseline(values: jax.Array, smoothing: Scalar) -> jax.Array:
    """Mean baseline: w_k = [y_k - mean(y)] / (K mu). No query at params.

    The expectation is (K-1)/K of the gradient, or exact if the rows sum to zero.

    Args:
      values, smoothing: f[K], the objective at the perturbed points, and f[], mu.

    Returns:
      f[K].

    Example:
      >>> import jax.numpy as jnp; from zojax import weights
      >>> print(weights.mean_baseline(jnp.array([2.0, 4.0]), 0.5))
      [-1.  1.]

    Source: arXiv 2506.14460, Section 4.1 (averaged baseline, this step alone).
    """
    z, finite, _ = _anchored(values)
    mean = _mean(z, finite)
    return _mean_of(jnp.where(finite, z - mean, jnp.nan), smoothing)


def leave_one_out(values: jax.Array, smoothing: Scalar) -> jax.Array:
    """Leave-one-out baseline: w_k = [y_k - mean of the others] / (K mu), unbiased.

    Args:
      values, smoothing: f[K], the objective at the perturbed points, and f[], mu.

    Returns:
      f[K]; zero if fewer than two values are finite.

    Example:
      >>> import jax.numpy as jnp; from zojax import weights
      >>> print(weights.leave_one_out(jnp.array([2.0, 4.0]), 0.5))
      [-2.  2.]

    Source: arXiv 2506.14460, Section 4.1, without the shrinkage.
    """
    number = jnp.isfinite(values).sum()
    scale = number / jnp.maximum(number - 1, 1)
    return _masked(mean_baseline(values, smoothing) * scale.astype(values.dtype))


def optimal_baseline(
    values: jax.Array, squared_norms: jax.Array, smoothing: Scalar
) -> jax.Array:
    """Variance-optimal baseline: w_k = (y_k - b) / (K mu).

        b = sum_k y_k |u_k|^2 / sum_k |u_k|^2.

    Estimated from the step's own values, b shrinks the expectation by about (K-1)/K.

    Args:
      values, squared_norms, smoothing: f[K], at perturbed points; f[K]; f[], mu.

    Returns:
      f[K].

    Example:
      >>> import jax.numpy as jnp; from zojax import weights
      >>> y, n = jnp.array([2.0, 6.0]), jnp.array([3.0, 1.0])
      >>> print(weights.optimal_baseline(y, n, 0.5))  # b = 3
      [-1.  3.]

    Source: arXiv 2506.14460, Theorem B.4.
    """
    z, finite, _ = _anchored(values)
    mass = jnp.where(finite, squared_norms, 0)
    total = mass.sum()
    baseline = jnp.sum(z * mass) / jnp.where(total > 0, total, 1)
    return _mean_of(jnp.where(finite, z - baseline, jnp.nan), smoothing)


# -- the history of ZoAR ---------------------------------------------------------------


class Record(NamedTuple):
    """What one step leaves in a ZoAR history."""

    weights: jax.Array  # f[2, K], of S = sum (y - m) u / mu and of T = sum u / mu
    anchor: jax.Array  # f[], the step's first finite value
    mean: jax.Array  # f[], m - anchor, m the mean of the step's finite values
    num_finite: jax.Array  # i32[], the number of finite values


def record(
    values: jax.Array,
    sides: jax.Array,
    smoothing: Scalar,
    bound: Scalar | None = None,
) -> Record:
    """Regroups a step's pairs (s_p u_k, y_kp) around their own mean.

    From values y f[K, P] and sides s f[P]; a bound is of (y - m) / mu, averaged over
    the sides. All is zero if no value is finite. Source: arXiv 2506.14460, Section 4.1.
    """
    z, finite, anchor = _anchored(values)
    num_finite = finite.sum(dtype=jnp.int32)
    mean = _mean(z, finite)
    centred = jnp.sum(jnp.where(finite, z - mean, 0) * sides[None], axis=-1)
    if bound is not None:
        limit = values.shape[1] * bound * smoothing
        centred = jnp.clip(centred, -limit, limit)
    plain = jnp.sum(finite.astype(z.dtype) * sides[None], axis=-1)
    weights = jnp.stack([centred, plain]) / smoothing
    return Record(_masked(weights), anchor, mean, num_finite)


def history(
    anchors: jax.Array,
    means: jax.Array,
    num_finite: jax.Array,
    *,
    leave_one_out: bool,
    limits: jax.Array | None = None,
) -> jax.Array:
    """Coefficients f[N, 2] of each record's S and T in the ZoAR estimate.

    With m_n = anchor_n + mean_n, M = sum_n M_n and b = sum_n M_n m_n / M,

        g = (1/M) sum_n [S_n + (m_n - b) T_n].

    M_n are the finite values of a record, 0 for an empty one; ``leave_one_out``
    multiplies by M/(M-1), which undoes the shrinkage of a mean that includes its own
    samples; limits f[N] are of m_n - b. Source: arXiv 2506.14460, Section 4.1.
    """
    present = num_finite > 0
    shares = num_finite.astype(means.dtype)
    reference = anchors[jnp.argmax(present)]
    level = jnp.where(present, (anchors - reference) + means, 0)
    total = shares.sum()
    baseline = jnp.sum(shares / jnp.maximum(total, 1) * level)
    offset = jnp.where(present, level - baseline, 0)
    if limits is not None:
        offset = jnp.clip(offset, -limits, limits)
    divisor = jnp.maximum(total - 1 if leave_one_out else total, 1)
    return _masked(jnp.stack([present.astype(means.dtype), offset], axis=-1) / divisor)
