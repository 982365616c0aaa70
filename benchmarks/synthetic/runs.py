"""Training runs with any estimator: the methods, and curves of all seeds at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from zojax.perturbations import rademacher

NUM_DIRECTIONS, SMOOTHING = 10, 0.05
PAPER_STEP = 1e-3
STEPS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
NUM_POINTS = 50  # of a curve, beside the start


class Method(NamedTuple):
    """An estimator and the schedule of its step size."""

    label: str
    build: Callable[[jax.Array], optax.GradientTransformationExtraArgs]  # from a key
    queries: int  # a step
    # Cosine decay to zero over this share of the run, after which nothing moves; 0: a
    # constant step size.
    cosine: float = 0.0


def exact_gradient() -> optax.GradientTransformationExtraArgs:
    """Autodiff in the place of an estimator: the floor."""

    def update(updates, state, params, *, value_fn, **extra_args):
        del updates, extra_args
        return jax.grad(value_fn)(params), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def _zoar(history_size, sampler=None):
    return lambda key: zojax.zoar(
        SMOOTHING, NUM_DIRECTIONS, key=key, history_size=history_size, sampler=sampler
    )


def _vanilla(key):
    return zojax.two_point(SMOOTHING, NUM_DIRECTIONS, key=key)


METHODS = {
    "vanilla": Method("vanilla", _vanilla, NUM_DIRECTIONS + 1),
    "mean": Method("mean baseline", _zoar(0), NUM_DIRECTIONS),
    "zoar-1": Method("ZoAR N = 1", _zoar(1), NUM_DIRECTIONS),
    "zoar-5": Method("ZoAR N = 5", _zoar(5), NUM_DIRECTIONS),
    "zoar-6": Method("ZoAR N = 6", _zoar(6), NUM_DIRECTIONS),
    "zoar-20": Method("ZoAR N = 20", _zoar(20), NUM_DIRECTIONS),
    "zoar-5-cosine": Method("ZoAR N = 5, cosine", _zoar(5), NUM_DIRECTIONS, 1.0),
    # The recommended preset is the mean baseline, Rademacher, cosine decay.
    "mean-rademacher": Method(
        "mean, Rademacher", _zoar(0, rademacher()), NUM_DIRECTIONS
    ),
    "recommended": Method("recommended", _zoar(0, rademacher()), NUM_DIRECTIONS, 1.0),
    "recommended-half": Method(
        "recommended, half", _zoar(0, rademacher()), NUM_DIRECTIONS, 0.5
    ),
    "exact": Method("exact gradient", lambda key: exact_gradient(), 1),
    "exact-cosine": Method("exact, cosine", lambda key: exact_gradient(), 1, 1.0),
}


class Curves(NamedTuple):
    """Losses at the iterates, f(theta)."""

    iterations: np.ndarray  # i[P + 1], 0 first
    losses: np.ndarray  # f[seeds, step sizes, P + 1]


def optimizer(
    method: Method, key: jax.Array, step_size: jax.Array, iterations: int
) -> optax.GradientTransformationExtraArgs:
    """The estimator and R-AdaZO."""
    schedule = step_size
    if method.cosine:
        decay = optax.cosine_decay_schedule(1.0, round(method.cosine * iterations))
        schedule = lambda count: step_size * decay(count)
    return optax.chain(method.build(key), zojax.radazo(schedule))


def _axes(carry: Any) -> Any:
    """The vmap axis of each leaf: None for keys and counts, which runs may share."""

    def axis(path, leaf):
        del leaf
        return None if jax.tree_util.keystr(path).endswith((".key", ".count")) else 0

    return jax.tree_util.tree_map_with_path(axis, carry)


def curves(
    f: Callable[[jax.Array], jax.Array],
    method: Method,
    *,
    dimension: int,
    iterations: int,
    seeds: Sequence[int],
    step_sizes: Sequence[float] = STEPS,
    tick: Callable[[float], Any] = lambda share: None,
) -> Curves:
    """Runs a method from every seed with every step size, all in one program.

    Args:
      f: f[d] -> f[].
      method: one of METHODS.
      dimension: d.
      iterations: a multiple of NUM_POINTS.
      seeds: each gives theta_0 ~ N(0, I) and the noise.
      step_sizes: of R-AdaZO; where the method decays it, the first one.
      tick: is called with the share that is done, and may raise to stop.
    """

    def begin(seed, step_size):
        start_key, noise_key = jax.random.split(jax.random.key(seed))
        x = jax.random.normal(start_key, (dimension,))
        return x, optimizer(method, noise_key, step_size, iterations).init(x)

    def advance(carry, step_size):
        def step(carry, _):
            x, state = carry
            # The key is in the state: the one given here is not read.
            opt = optimizer(method, jax.random.key(0), step_size, iterations)
            updates, state = opt.update(None, state, x, value_fn=f)
            return (optax.apply_updates(x, updates), state), None

        carry, _ = jax.lax.scan(step, carry, length=iterations // NUM_POINTS)
        return carry, f(carry[0])

    # The step sizes of a seed share its key and count, so that vmap draws noise once.
    shared = _axes(jax.eval_shape(begin, 0, 1.0))
    begin = jax.vmap(jax.vmap(begin, (None, 0), shared), (0, None))
    advance = jax.vmap(jax.vmap(advance, (shared, 0), (shared, 0)), (0, None))
    seeds, step_sizes = jnp.asarray(seeds), jnp.asarray(step_sizes)
    block = jax.jit(advance, donate_argnums=0)
    carry = jax.jit(begin)(seeds, step_sizes)
    losses = [jax.vmap(jax.vmap(f))(carry[0])]
    for point in range(NUM_POINTS):
        carry, loss = block(carry, step_sizes)
        losses.append(jax.block_until_ready(loss))
        tick((point + 1) / NUM_POINTS)
    iterations_seen = np.arange(NUM_POINTS + 1) * (iterations // NUM_POINTS)
    return Curves(iterations_seen, np.stack(losses, axis=-1))
