"""Training runs with any estimator: the methods, and curves of all seeds at once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from benchmarks.batching import shared_axes
from benchmarks.study import Row, Tick
from zojax.perturbations import rademacher

NUM_DIRECTIONS, SMOOTHING = 10, 0.05
PAPER_STEP = 1e-3
STEPS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


class Size(NamedTuple):
    """Of a run: d, steps (a multiple of points), points of a curve beside the start."""

    dimension: int
    iterations: int
    points: int = 50


class Method(NamedTuple):
    """An estimator, and R-AdaZO's settings."""

    build: Callable[[jax.Array], optax.GradientTransformationExtraArgs]  # from a key
    queries: int = NUM_DIRECTIONS  # a step; an exact gradient is counted like others
    # Share of the budget that is spent -> factor of the step size.
    decay: Callable[[jax.Array], jax.Array] = jnp.ones_like
    betas: tuple[float, float] = (0.9, 0.99)
    budget: float = 1.0  # share of the run's steps; after it nothing moves


def cosine(t: jax.Array) -> jax.Array:
    """Half a wave, from 1 to 0."""
    return (1 + jnp.cos(jnp.pi * t)) / 2


def exact_gradient(key: jax.Array) -> optax.GradientTransformationExtraArgs:
    """Autodiff in the place of an estimator: the floor."""

    def update(updates, state, params, *, value_fn):
        return jax.grad(value_fn)(params), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def vanilla(key: jax.Array) -> optax.GradientTransformationExtraArgs:
    """Forward differences."""
    return zojax.two_point(SMOOTHING, NUM_DIRECTIONS, key=key)


def _zoar(history_size, sampler=None, num_directions=NUM_DIRECTIONS):
    return lambda key: zojax.zoar(
        SMOOTHING, num_directions, key=key, history_size=history_size, sampler=sampler
    )


def _fast(budget):
    """For short budgets: twice the directions, no momentum."""
    num_directions = 2 * NUM_DIRECTIONS
    estimator = _zoar(0, rademacher(), num_directions)
    decay = lambda t: jnp.exp(-2.2 * t)
    return Method(estimator, num_directions, decay, (0.0, 0.95), budget)


_mean_signs = _zoar(0, rademacher())
METHODS = {
    "vanilla": Method(vanilla, NUM_DIRECTIONS + 1),
    "mean baseline": Method(_zoar(0)),
    "ZoAR N = 5": Method(_zoar(5)),
    "ZoAR N = 20": Method(_zoar(20)),
    "ZoAR N = 5, cosine": Method(_zoar(5), decay=cosine),
    "mean, Rademacher": Method(_mean_signs),
    "recommended": Method(_mean_signs, decay=cosine),
    "recommended, half": Method(_mean_signs, decay=cosine, budget=0.5),
    "fast preset, half": _fast(0.25),  # of the steps, which are half of the calls
    "fast preset, 30%": _fast(0.15),
    "exact gradient": Method(exact_gradient),
    "exact, cosine": Method(exact_gradient, decay=cosine),
}


def optimizer(
    method: Method, key: jax.Array, step_size: jax.Array, iterations: int
) -> optax.GradientTransformationExtraArgs:
    """The estimator and R-AdaZO."""
    budget = method.budget * iterations

    def schedule(count):
        factor = jnp.where(count < budget, method.decay(count / budget), 0.0)
        return step_size * factor

    b1, b2 = method.betas
    return optax.chain(method.build(key), zojax.radazo(schedule, b1=b1, b2=b2))


def curves(
    f: Callable[[jax.Array], jax.Array],
    method: Method,
    size: Size,
    seeds: Sequence[int],
    step_sizes: Sequence[float],
    names: Row,
    tick: Tick,
) -> list[Row]:
    """Runs a method from every seed with every step size, all in one program.

    Each seed gives theta_0 ~ N(0, I) and the noise. Rows of the names, step_size, seed,
    iteration (0 first) and loss, f(theta) there.
    """
    dimension, iterations, points = size

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

        carry, _ = jax.lax.scan(step, carry, length=iterations // points)
        return carry, f(carry[0])

    # The step sizes of a seed share its key and count, so that vmap draws noise once.
    shared = shared_axes(jax.eval_shape(begin, 0, 1.0))
    begin = jax.vmap(jax.vmap(begin, (None, 0), shared), (0, None))
    advance = jax.vmap(jax.vmap(advance, (shared, 0), (shared, 0)), (0, None))
    block = jax.jit(advance, donate_argnums=0)
    rates = jnp.asarray(step_sizes)
    carry = jax.jit(begin)(jnp.asarray(seeds), rates)
    losses = [jax.vmap(jax.vmap(f))(carry[0])]
    for point in range(points):
        carry, loss = block(carry, rates)
        losses.append(jax.block_until_ready(loss))
        tick((point + 1) / points)
    return [
        names
        | {"step_size": step_sizes[j], "seed": seeds[i]}
        | {"iteration": point * (iterations // points), "loss": float(loss)}
        for (point, i, j), loss in np.ndenumerate(np.stack(losses))
    ]
