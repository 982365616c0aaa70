"""Ours and evosax's on COCO's functions: a run is a scan, its calls are the host's."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from evosax.algorithms import CMA_ES, SNES

import zojax
from zojax.perturbations import gaussian, rademacher
from zojax.shaping import centred_ranks

# evosax's: the deviations that they begin with are ten times these.
STEP_SIZES = (0.03, 0.1, 0.3, 1.0, 3.0)
MAX_C = 1.0  # a tenth of the domain


def population_of(dimension: int) -> int:
    """Twice what CMA-ES has by default, since f is noisy."""
    return 2 * (4 + math.floor(3 * math.log(dimension)))


class Run(NamedTuple):
    """How one run goes; ``carry`` is a pytree."""

    begin: Callable[..., Any]  # (ask, start, which, step size, key) -> carry
    advance: Callable[..., Any]  # (ask, carry, which, key) -> carry
    found: Callable[[Any], jax.Array]  # carry -> the point to recommend
    num_steps: int


Make = Callable[[int, int], Run]
"""(dimension, calls in all) -> a run that makes no more."""

REPEATS, PAIRS = 8, 8  # to calibrate: 24 calls


class Known(NamedTuple):
    """What an optimizer is made of."""

    key: jax.Array
    step_size: jax.Array
    a: jax.Array  # Spall's, and the noise of f: where calibrated
    c: jax.Array
    noise: jax.Array


def _ours(
    build: Callable,
    calls: Callable[[int], int] = population_of,
    calibrated: bool = False,
    averaged: bool = False,
) -> Make:
    """build(known, number of steps, dimension) -> an optimizer with so many calls."""

    def make(dimension: int, budget: int) -> Run:
        spent = REPEATS + 2 * PAIRS if calibrated else 0
        num_steps = (budget - spent) // calls(dimension)

        def optimizer(known):
            first = build(known, num_steps, dimension)
            return optax.chain(first, zojax.average_iterates(num_steps // 2))

        def begin(ask, start, which, step_size, key):
            a = c = noise = jnp.zeros(())
            if calibrated:
                f = lambda x, query_key: ask(x, which, query_key)
                noise = zojax.noise_deviation(f, start, key=key, num_repeats=REPEATS)
                c = jnp.clip(noise, step_size, MAX_C)
                gains = zojax.calibrate_spall_gains(
                    f, start, step_size, num_steps, key=key, c=c, num_directions=PAIRS
                )
                a = gains.learning_rate(0) * (num_steps / 10 + 1) ** 0.602
            known = Known(jax.random.key_data(key), step_size, a, c, noise)
            return start, optimizer(known).init(start), known

        def advance(ask, carry, which, key):
            x, state, known = carry
            opt = optimizer(known)
            updates, state = opt.update(None, state, x, value_fn=ask, which=which)
            return optax.apply_updates(x, updates), state, known

        def found(carry):
            return optax.tree.get(carry[1], "average") if averaged else carry[0]

        return Run(begin, advance, found, num_steps)

    return make


def _gains(known, num_steps):
    return zojax.spall_gains(known.a, known.c, stability=num_steps / 10)


def _spsa(known, num_steps, d):
    return zojax.spsa(*_gains(known, num_steps), key=known.key)


def _blocked(known, num_steps, d):
    block = zojax.block_steps(2 * known.noise, key=known.key)
    return optax.chain(_spsa(known, num_steps, d), block)


def _second_order(known, num_steps, d):
    """No step is longer than SPSA's: the least curvature is 1 / a_0."""
    a_k, c_k = _gains(known, num_steps)
    least = 1 / jnp.maximum(a_k(0), 1e-30)
    newton = zojax.second_order_spsa(c_k, least, key=known.key, prior_weight=d * d)
    return optax.chain(newton, optax.sgd(lambda count: a_k(count) * least))


def _spall_decay(num_steps):
    """a_k / a_0 and c_k / c_0 of Spall's gains."""
    gains = zojax.spall_gains(1.0, 1.0, stability=num_steps / 10)
    first = gains.learning_rate(0)
    return lambda count: gains.learning_rate(count) / first, gains.smoothing


def _geometric_decay(num_steps):
    """Both to a thousandth."""
    decay = optax.exponential_decay(1.0, num_steps, 1e-3)
    return decay, decay


def _signs(decays: Callable) -> Callable:
    """SPSA that looks at the sign of its difference alone, which two ranks are."""

    def build(known, num_steps, d):
        steps, widths = decays(num_steps)
        width = lambda count: 2 * known.step_size * widths(count)
        options = {"sampler": rademacher(), "shaping": centred_ranks}
        options |= {"key": known.key, "difference": "central"}
        first = zojax.two_point(width, 1, **options)
        # Ranks differ by 1, so that the estimate is a sign over twice the width.
        rate = lambda count: 2 * width(count) * known.step_size * steps(count)
        return optax.chain(first, optax.sgd(rate))

    return build


def _adam(estimator: Callable, **options: Any) -> Callable:
    """Pairs and Adam; step and smoothing decay together."""

    def build(known, num_steps, d):
        decay, _ = _geometric_decay(num_steps)
        step_size = lambda count: known.step_size * decay(count)
        smoothing = lambda count: 2 * step_size(count)
        given = {"sampler": gaussian(), "shaping": centred_ranks, "key": known.key}
        first = estimator(smoothing, population_of(d) // 2, **given, **options)
        return optax.chain(first, optax.adam(step_size))

    return build


def _evosax(kind: Any) -> Make:
    """Its step size is the standard deviation that it begins with."""

    def make(dimension: int, budget: int) -> Run:
        population = population_of(dimension)
        es = kind(population, jnp.zeros(dimension))

        def settings(step_size):
            return es.default_params.replace(std_init=10 * step_size)

        def begin(ask, start, which, step_size, key):
            return es.init(key, start, settings(step_size)), step_size

        def advance(ask, carry, which, key):
            state, step_size = carry
            keys, params = jax.random.split(key, 3), settings(step_size)
            points, state = es.ask(keys[0], state, params)
            values = jax.vmap(ask, (0, None, None))(points, which, keys[1])
            # What failed is worst.
            values = jnp.where(jnp.isfinite(values), values, 1e30)
            state = es.tell(keys[2], points, values, state, params)[0]
            return state, step_size

        found = lambda carry: es.get_mean(carry[0])
        return Run(begin, advance, found, budget // population)

    return make


OURS = "zojax "
METHODS: dict[str, Make] = {
    "zojax SPSA": _ours(_spsa, lambda d: 2, True),
    "zojax SPSA, averaged": _ours(_spsa, lambda d: 2, True, True),
    "zojax SPSA, blocked": _ours(_blocked, lambda d: 3, True),
    "zojax 2-SPSA": _ours(_second_order, lambda d: 4, True),
    "zojax signs": _ours(_signs(_spall_decay), lambda d: 2),
    "zojax signs, geometric": _ours(_signs(_geometric_decay), lambda d: 2),
    "zojax pairs, ranks, Adam": _ours(_adam(zojax.two_point, difference="central")),
    "zojax ZoAR, ranks, Adam": _ours(_adam(zojax.zoar, symmetric=True, history_size=2)),
    "evosax SNES": _evosax(SNES),
    "evosax CMA-ES": _evosax(CMA_ES),
}
