"""OpenAI-ES by evosax, ask, evaluate and tell in one jitted scan.

Its defaults: antithetic pairs, centred ranks as fitness. Metrics are dropped, so that
XLA leaves out what only they need.
"""

from collections.abc import Callable

import jax
import optax
from evosax.algorithms import Open_ES


def training(
    f: Callable[[jax.Array], jax.Array],
    steps: int,
    population_size: int,
    smoothing: float,
    optimizer: optax.GradientTransformation,
) -> Callable[[jax.Array], jax.Array]:
    """Whole steps in a scan: x -> the mean after the steps."""

    def run(x):
        schedule = optax.constant_schedule(smoothing)
        es = Open_ES(population_size, x, optimizer=optimizer, std_schedule=schedule)
        params = es.default_params

        def body(state, key):
            ask_key, tell_key = jax.random.split(key)
            population, state = es.ask(ask_key, state, params)
            values = jax.vmap(f)(population)
            state, _ = es.tell(tell_key, population, values, state, params)
            return state, None

        init_key, scan_key = jax.random.split(jax.random.key(0))
        state = es.init(init_key, x, params)
        state, _ = jax.lax.scan(body, state, jax.random.split(scan_key, steps))
        return es.get_mean(state)

    return run
