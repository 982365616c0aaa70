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
Ask = Callable[..., jax.Array]
"""value_fn of (x, which, query_key)."""


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


class _Known(NamedTuple):
    """What a run is made of; all but the key and the step size SPSA's alone."""

    key: jax.Array
    step_size: jax.Array
    a: jax.Array | None = None
    c: jax.Array | None = None
    noise: jax.Array | None = None


def _run(
    optimizer: Callable, known_of: Callable, num_steps: int, found: Callable
) -> Run:
    """A run of optimizer(known); known_of(f, start, step size, key) may ask f."""

    def begin(ask, start, which, step_size, key):
        f = lambda x, query_key: ask(x, which, query_key)
        known = known_of(f, start, step_size, key)
        return start, optimizer(known).init(start), known

    def advance(ask, carry, which, key):
        x, state, known = carry
        opt = optimizer(known)
        updates, state = opt.update(None, state, x, value_fn=ask, which=which)
        return optax.apply_updates(x, updates), state, known

    return Run(begin, advance, found, num_steps)


def _last(carry):
    return carry[0]


def _average(carry):
    return optax.tree.get(carry[1], "average")


def _spsa(calls: int, build: Callable, found: Callable = _last) -> Make:
    """SPSA with calibrated gains; build(a_k, c_k, known, d) -> an optimizer."""

    def make(dimension: int, budget: int) -> Run:
        num_steps = (budget - REPEATS - 2 * PAIRS) // calls
        stability = num_steps / 10

        def optimizer(known):
            gains = zojax.spall_gains(known.a, known.c, stability=stability)
            first = build(*gains, known, dimension)
            return optax.chain(first, zojax.average_iterates(num_steps // 2))

        def calibrated(f, start, step_size, key):
            noise = zojax.noise_deviation(f, start, key=key, num_repeats=REPEATS)
            c = jnp.clip(noise, step_size, MAX_C)
            gains = zojax.calibrate_spall_gains(
                f, start, step_size, num_steps, key=key, c=c, num_directions=PAIRS
            )
            a = gains.learning_rate(0) * (stability + 1) ** 0.602
            return _Known(jax.random.key_data(key), step_size, a, c, noise)

        return _run(optimizer, calibrated, num_steps, found)

    return make


def _plain(a_k, c_k, known, d):
    return zojax.spsa(a_k, c_k, key=known.key)


def _blocked(a_k, c_k, known, d):
    return optax.chain(
        zojax.spsa(a_k, c_k, key=known.key),
        zojax.block_steps(2 * known.noise, key=known.key),
    )


def _second_order(a_k, c_k, known, d):
    """No step is longer than SPSA's: the least curvature is 1 / a_0."""
    least = 1 / jnp.maximum(a_k(0), 1e-30)
    newton = zojax.second_order_spsa(c_k, least, key=known.key, prior_weight=d * d)
    return optax.chain(newton, optax.sgd(lambda count: a_k(count) * least))


def _ranks(build: Callable, calls: Callable[[int], int] = population_of) -> Make:
    """What needs no calibration; build(step size, steps, calls of one, key)."""

    def make(dimension: int, budget: int) -> Run:
        number = calls(dimension)
        num_steps = budget // number
        known = lambda f, start, step, key: _Known(jax.random.key_data(key), step)
        optimizer = lambda known: build(known.step_size, num_steps, number, known.key)
        return _run(optimizer, known, num_steps, _last)

    return make


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

    def build(step_size, num_steps, number, key):
        steps, widths = decays(num_steps)
        width = lambda count: 2 * step_size * widths(count)
        first = zojax.two_point(
            width,
            1,
            key=key,
            sampler=rademacher(),
            difference="central",
            shaping=centred_ranks,
        )
        # Ranks differ by 1, so that the estimate is a sign over twice the width.
        rate = lambda count: 2 * width(count) * step_size * steps(count)
        return optax.chain(first, optax.sgd(rate))

    return build


def _adam(estimator: Callable, **options: Any) -> Callable:
    """Pairs and Adam; step and smoothing decay together."""

    def build(step_size, num_steps, population, key):
        decay, _ = _geometric_decay(num_steps)
        first = estimator(
            lambda count: 2 * step_size * decay(count),
            population // 2,
            key=key,
            sampler=gaussian(),
            shaping=centred_ranks,
            **options,
        )
        return optax.chain(first, optax.adam(lambda n: step_size * decay(n)))

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
    "zojax SPSA": _spsa(2, _plain),
    "zojax SPSA, averaged": _spsa(2, _plain, _average),
    "zojax SPSA, blocked": _spsa(3, _blocked),
    "zojax 2-SPSA": _spsa(4, _second_order),
    "zojax signs": _ranks(_signs(_spall_decay), lambda dimension: 2),
    "zojax signs, geometric": _ranks(_signs(_geometric_decay), lambda dimension: 2),
    "zojax pairs, ranks, Adam": _ranks(_adam(zojax.two_point, difference="central")),
    "zojax ZoAR, ranks, Adam": _ranks(
        _adam(zojax.zoar, symmetric=True, history_size=2)
    ),
    "evosax SNES": _evosax(SNES),
    "evosax CMA-ES": _evosax(CMA_ES),
}
