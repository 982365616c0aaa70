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
NUM_POINTS = 50  # of a curve, beside the start


Decay = Callable[[jax.Array], jax.Array]
"""Share of the budget that is spent -> factor of the step size."""


def cosine(t: jax.Array) -> jax.Array:
    """Half a wave, from 1 to 0."""
    return (1 + jnp.cos(jnp.pi * t)) / 2


class Method(NamedTuple):
    """An estimator, and R-AdaZO's settings."""

    label: str
    build: Callable[[jax.Array], optax.GradientTransformationExtraArgs]  # from a key
    queries: int  # a step
    decay: Decay = jnp.ones_like
    betas: tuple[float, float] = (0.9, 0.99)
    budget: float = 1.0  # share of the run's steps; after it nothing moves


def exact_gradient() -> optax.GradientTransformationExtraArgs:
    """Autodiff in the place of an estimator: the floor."""

    def update(updates, state, params, *, value_fn, **extra_args):
        del updates, extra_args
        return jax.grad(value_fn)(params), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def _zoar(history_size, sampler=None, num_directions=NUM_DIRECTIONS):
    return lambda key: zojax.zoar(
        SMOOTHING, num_directions, key=key, history_size=history_size, sampler=sampler
    )


def _vanilla(key):
    return zojax.two_point(SMOOTHING, NUM_DIRECTIONS, key=key)


def _exact(key):
    return exact_gradient()


_mean_rademacher = _zoar(0, rademacher())


def _fast(label, budget):
    num_directions = 2 * NUM_DIRECTIONS
    estimator = _zoar(0, rademacher(), num_directions)
    return Method(
        label,
        estimator,
        num_directions,
        lambda t: jnp.exp(-2.2 * t),
        (0.0, 0.95),
        budget,
    )


METHODS = {
    "vanilla": Method("vanilla", _vanilla, NUM_DIRECTIONS + 1),
    "mean": Method("mean baseline", _zoar(0), NUM_DIRECTIONS),
    "zoar-1": Method("ZoAR N = 1", _zoar(1), NUM_DIRECTIONS),
    "zoar-5": Method("ZoAR N = 5", _zoar(5), NUM_DIRECTIONS),
    "zoar-6": Method("ZoAR N = 6", _zoar(6), NUM_DIRECTIONS),
    "zoar-20": Method("ZoAR N = 20", _zoar(20), NUM_DIRECTIONS),
    "zoar-5-cosine": Method("ZoAR N = 5, cosine", _zoar(5), NUM_DIRECTIONS, cosine),
    # The recommended preset is the mean baseline, Rademacher, cosine decay.
    "mean-rademacher": Method("mean, Rademacher", _mean_rademacher, NUM_DIRECTIONS),
    "recommended": Method("recommended", _mean_rademacher, NUM_DIRECTIONS, cosine),
    "recommended-half": Method(
        "recommended, half", _mean_rademacher, NUM_DIRECTIONS, cosine, budget=0.5
    ),
    # For short budgets, half and 30% of the calls: K = 20, no momentum.
    "fast-half": _fast("fast preset, half", 0.25),
    "fast-30": _fast("fast preset, 30%", 0.15),
    # A gradient is counted as a step of the others.
    "exact": Method("exact gradient", _exact, NUM_DIRECTIONS),
    "exact-cosine": Method("exact, cosine", _exact, NUM_DIRECTIONS, cosine),
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
    *,
    dimension: int,
    iterations: int,
    seeds: Sequence[int],
    step_sizes: Sequence[float] = STEPS,
    num_points: int | None = None,
    tick: Tick = lambda share: None,
) -> list[Row]:
    """Runs a method from every seed with every step size, all in one program.

    Args:
      f: f[d] -> f[].
      method: one of METHODS.
      dimension: d.
      iterations: a multiple of num_points.
      seeds: each gives theta_0 ~ N(0, I) and the noise.
      step_sizes: of R-AdaZO; where the method decays it, the first one.
      num_points: of a curve, beside the start; NUM_POINTS by default.
      tick: is called with the share that is done, and may raise to stop.

    Returns:
      Rows of step_size, seed, iteration (0 first) and loss, f(theta) there.
    """
    num_points = num_points or NUM_POINTS

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

        carry, _ = jax.lax.scan(step, carry, length=iterations // num_points)
        return carry, f(carry[0])

    # The step sizes of a seed share its key and count, so that vmap draws noise once.
    shared = shared_axes(jax.eval_shape(begin, 0, 1.0))
    begin = jax.vmap(jax.vmap(begin, (None, 0), shared), (0, None))
    advance = jax.vmap(jax.vmap(advance, (shared, 0), (shared, 0)), (0, None))
    block = jax.jit(advance, donate_argnums=0)
    rates = jnp.asarray(step_sizes)
    carry = jax.jit(begin)(jnp.asarray(seeds), rates)
    losses = [jax.vmap(jax.vmap(f))(carry[0])]
    for point in range(num_points):
        carry, loss = block(carry, rates)
        losses.append(jax.block_until_ready(loss))
        tick((point + 1) / num_points)
    return [
        {
            "step_size": step_sizes[j],
            "seed": seeds[i],
            "iteration": point * (iterations // num_points),
            "loss": float(loss),
        }
        for (point, i, j), loss in np.ndenumerate(np.stack(losses))
    ]


def sweep(
    one: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    values: Sequence[float],
    step_sizes: Sequence[float],
    seeds: Sequence[int],
    tick: Tick = lambda share: None,
) -> list[Row]:
    """Rows of seed, value, step_size and loss, one(seed, value, step size).

    A program of all values and step sizes, which share their seed's noise, is called
    for each seed.
    """
    inner = jax.vmap(one, (None, None, 0))
    program = jax.jit(jax.vmap(inner, (None, 0, None)))
    rows = []
    for done, seed in enumerate(seeds, 1):
        found = program(seed, jnp.asarray(values), jnp.asarray(step_sizes))
        rows += [
            {
                "seed": seed,
                "value": values[i],
                "step_size": step_sizes[j],
                "loss": float(loss),
            }
            for (i, j), loss in np.ndenumerate(np.asarray(found))
        ]
        tick(done / len(seeds))
    return rows
