"""2-SPSA: a Hessian from differences of differences, averaged, and its inverse."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zojax._checks import check_flag, check_int, check_number
from zojax._directions import (
    Directions,
    dimension,
    direction_shapes,
    map_directions,
)
from zojax._estimators.log import QueryLog
from zojax._estimators.rounds import Round, Settings
from zojax._estimators.step import Estimator, estimator
from zojax._evaluation import ONE_SIDE
from zojax._numerics import Number, PyTree, is_none, number_at, value_dtype
from zojax.perturbations import Sampler, from_rows, rademacher
from zojax.perturbations._sampler import check_holds_rows, check_sampler

MAX_ENTRIES = 1000
POINTS = 4  # of a sample: theta +- c v, and both moved by c~ w


class SecondOrderSpsaState(NamedTuple):
    """State of :func:`second_order_spsa`."""

    key: jax.Array  # uint32[2], raw words
    count: jax.Array  # type: ignore[assignment]  # i32[]
    log: QueryLog
    hessian: jax.Array  # f[d, d], the average
    num_samples: jax.Array  # i32[], steps that it is of


def second_order_spsa(
    smoothing: Number,
    min_curvature: Number,
    *,
    key: jax.Array | int,
    num_directions: int = 1,
    hessian_smoothing: Number | None = None,
    sampler: Sampler | None = None,
    prior: float = 1.0,
    prior_weight: float = 1.0,
    feedback: bool = False,
    has_aux: bool = False,
    aux_like: PyTree = None,
) -> Estimator:
    """2-SPSA: the estimate of SPSA, times the inverse of a Hessian that it learns.

    With signs v and w, and y+- = f(theta +- c v), z+- = f(theta +- c v + c~ w):

        g   = (y+ - y-) / (2 c) v
        H_k = sym[ ((z+ - y+) - (z- - y-)) / (2 c c~) w v^T ],    E[H_k] -> Hessian
        H   = (p_w p I + sum_k H_k) / (p_w + n)
        u   = (sqrt(H H) + m I)^-1 g

    Four calls a sample, in one round. The estimate is a Newton step, in units of
    params: ``optax.chain(second_order_spsa(...), optax.sgd(schedule))`` with steps of 1
    or of Spall's a_k, and :func:`zojax.block_steps` where f is rough. H holds d x d
    numbers, and each step takes its eigenvectors.

    One sample of H has errors d times the Hessian itself: a step is worth its name
    after some d^2 samples, and ``prior_weight`` of about d^2 keeps the first from going
    astray. With ``feedback`` a sample says only what H does not know yet,

        H_k = H + sym[ (h - w^T H v) w v^T ],    h = ((z+ - y+) - (z- - y-)) / (2 c c~)

    of the same mean, and errors that shrink with those of H: at d = 10 to a third of
    the others after 4,000 samples. It needs a ``prior_weight`` of about d^2: with a
    small one the first errors feed themselves.

    Args:
      smoothing: c > 0, or a schedule.
      min_curvature: m > 0, in units of f over params^2, or a schedule. Steps are at
        most |g| / m.
      key: a threefry key or an int seed.
      num_directions: K >= 1 samples of g and of H in a step, averaged; 4K calls.
      hessian_smoothing: c~ > 0, or a schedule; None for c.
      sampler: of v and w, whose entries are +-1; rademacher() by default.
        restrict(rademacher(), mask) freezes leaves.
      prior: p > 0, the curvature that is assumed at first.
      prior_weight: p_w >= 0, the number of steps that it counts for.
      feedback: see above.
      has_aux, aux_like: as in :func:`two_point`.

    Returns:
      An :class:`zojax.Estimator` whose update looks like params. Of a sample with a
      value that is not finite nothing is used.

    Raises:
      ValueError: for a static argument out of its range; in ``init`` for params with
        more than 1,000 trainable entries.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> opt, x = zojax.second_order_spsa(0.1, 0.1, key=0), jnp.ones(2)
      >>> f, state = lambda x: x @ x, opt.init(x)
      >>> step = jax.jit(lambda state: opt.update(None, state, x, value_fn=f)[1])
      >>> for _ in range(400):
      ...     state = step(state)
      >>> print(jnp.abs(state.hessian - 2 * jnp.eye(2)).max() < 0.4)
      True

    Source: Spall, IEEE Transactions on Automatic Control 45(10), 2000; feedback: 54(6),
      2009.
    """
    signs = rademacher() if sampler is None else sampler
    check_sampler("sampler", signs)
    check_holds_rows("sampler", signs)
    check_int("num_directions", num_directions, 1)
    check_number("min_curvature", min_curvature, 0.0)
    if hessian_smoothing is not None:
        check_number("hessian_smoothing", hessian_smoothing, 0.0)
    check_number("prior", prior, 0.0, schedule=False)
    check_number("prior_weight", prior_weight, 0.0, low_ok=True, schedule=False)
    check_flag("feedback", feedback)
    named = Directions(signs, key, num_directions)
    points = Directions(from_rows(signs.row), key, POINTS * num_directions)

    def keep(params):
        d = dimension(params, named)
        if d > MAX_ENTRIES:
            accepted = f"at most {MAX_ENTRIES} trainable entries, since H is d x d"
            raise ValueError(f"params must have {accepted}; got {d}")
        # A buffer of its own: nothing else has this value.
        hessian = prior * jnp.eye(d, dtype=value_dtype())
        return {"hessian": hessian, "num_samples": jnp.zeros((), jnp.int32)}

    def body(step):
        c, count = step.smoothing, step.state.count
        other = c if hessian_smoothing is None else number_at(hessian_smoothing, count)
        keys = (jax.random.fold_in(step.key, i) for i in range(2))
        drawn = (step.directions(signs, num_directions, key) for key in keys)
        v, w = (map_directions(_flat, step.params, V) for V in drawn)
        moved = _moved(v, other / c * w, named)
        answer = yield Round(step.directions(moved, POINTS * num_directions), c)
        y = answer.values.reshape(num_directions, POINTS)
        finite = jnp.isfinite(y).all(axis=1)
        y = jnp.where(finite[:, None], y, 0)
        share = finite.astype(y.dtype) / jnp.maximum(finite.sum(), 1).astype(y.dtype)
        slopes = share * (y[:, 0] - y[:, 1]) / (2 * c)
        curvatures = (y[:, 2] - y[:, 0] - y[:, 3] + y[:, 1]) / (2 * c * other)
        known = step.state.hessian if feedback else jnp.zeros_like(step.state.hessian)
        news = share * (curvatures - _along(w, known, v))
        sample = known + _symmetric(news, w, v)
        changed = _averaged(step.state, sample, finite, prior_weight)
        gradient = jnp.sum(slopes[:, None] * v, axis=0)
        floor = number_at(min_curvature, count)
        newton = _solved(changed["hessian"], floor, gradient)
        return _unflat(newton, step.params, named), changed

    settings = Settings(key, smoothing, None, None, None, None, has_aux, aux_like)
    stages, state = (points,), SecondOrderSpsaState
    return estimator(settings, body, state, stages, ONE_SIDE, keep=keep)


def _moved(v: jax.Array, w: jax.Array, named: Directions) -> Sampler:
    """Rows v, -v, v + w and -v + w, for each of the rows v[K, d] and w[K, d]."""

    def row(key, k, number, params):
        i, which = k // POINTS, k % POINTS
        side = jnp.where(which % 2 == 0, 1, -1).astype(v.dtype)
        both = side * v[i] + jnp.where(which < 2, 0, w[i])
        cast = lambda x, p: None if x is None else x.astype(jnp.result_type(p))
        return jax.tree.map(cast, _unflat(both, params, named), params, is_leaf=is_none)

    return from_rows(row, design="joint")


def _flat(direction: PyTree) -> jax.Array:
    """The trainable entries, in the dtype of values."""
    dtype = value_dtype()
    leaves = [jnp.ravel(x).astype(dtype) for x in jax.tree.leaves(direction)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0, dtype)


def _unflat(vector: jax.Array, params: PyTree, named: Directions) -> PyTree:
    """The inverse of :func:`_flat`: like params, None at frozen leaves."""
    leaves, structure = jax.tree.flatten(direction_shapes(params, named))
    parts, start = [], 0
    for leaf in leaves:
        parts.append(vector[start : start + leaf.size].reshape(leaf.shape))
        start += leaf.size
    return jax.tree.unflatten(structure, parts)


# Matrix units may not round what is to be exact.
FULL = jax.lax.Precision.HIGHEST


def _symmetric(weights: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
    """sum_k weights_k (w_k v_k^T + v_k w_k^T) / 2."""
    outer = jnp.matmul((weights[:, None] * w).T, v, precision=FULL)
    return (outer + outer.T) / 2


def _along(w: jax.Array, matrix: jax.Array, v: jax.Array) -> jax.Array:
    """w_k^T matrix v_k for each k."""
    return jnp.sum(jnp.matmul(w, matrix, precision=FULL) * v, axis=1)


def _averaged(
    state: SecondOrderSpsaState,
    sample: jax.Array,
    finite: jax.Array,
    prior_weight: float,
) -> dict[str, jax.Array]:
    """The average with one sample more, if there is one and it does not overflow."""
    number = state.num_samples + finite.any().astype(jnp.int32)
    weight = jnp.maximum(prior_weight + number.astype(sample.dtype), 1)
    new = state.hessian + (sample - state.hessian) / weight
    usable = finite.any() & jnp.isfinite(new).all()
    return {
        "hessian": jnp.where(usable, new, state.hessian),
        "num_samples": jnp.where(usable, number, state.num_samples),
    }


def _solved(hessian: jax.Array, floor: jax.Array, gradient: jax.Array) -> jax.Array:
    """(sqrt(H H) + floor I)^-1 g."""
    values, vectors = jnp.linalg.eigh(hessian)
    along = jnp.matmul(vectors.T, gradient, precision=FULL)
    return jnp.matmul(vectors, along / (jnp.abs(values) + floor), precision=FULL)
