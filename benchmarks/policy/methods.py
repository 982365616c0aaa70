"""Ours and evosax's: a whole run is one scan, of (step size, key) alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from evosax.algorithms import ARS, SNES, Open_ES

import zojax
from benchmarks.policy.tasks import Task, make
from zojax.perturbations import gaussian, orthogonal
from zojax.shaping import centred_ranks, z_score

POPULATION, EPISODES = 32, 2  # members of a generation, and episodes of each
JUDGING = 8  # episodes that the curve is made of, of the mean
SMOOTHING = 0.1
Run = Callable[[jax.Array, jax.Array], jax.Array]
"""(step size, key) -> return f[generations] of the mean after each."""


def _scan(task: Task, generations: int, build: Callable) -> Run:
    """A run, from build(start, step size, score, key) -> (state, advance, mean of)."""
    init, mean_return = make(task)

    def run(step_size, key):
        init_key, own_key, scan_key = jax.random.split(key, 3)
        # All members of a generation live through the same episodes.
        cost = lambda params, key: -mean_return(params, key, EPISODES)
        state, advance, mean_of = build(init(init_key), step_size, cost, own_key)

        def generation(state, key):
            episodes, own, judging = jax.random.split(key, 3)
            state = advance(state, episodes, own)
            return state, mean_return(mean_of(state), judging, JUDGING)

        keys = jax.random.split(scan_key, generations)
        return jax.lax.scan(generation, state, keys)[1]

    return run


def _ours(make_estimator: Callable[[jax.Array], zojax.Estimator]) -> Callable:
    def build(start, step_size, cost, key):
        opt = optax.chain(make_estimator(key), optax.adam(step_size))

        def advance(state, episodes, own):
            params, opt_state = state
            value_fn = lambda params, episodes: cost(params, episodes)
            updates, opt_state = opt.update(
                None, opt_state, params, value_fn=value_fn, episodes=episodes
            )
            return optax.apply_updates(params, updates), opt_state

        return (start, opt.init(start)), advance, lambda state: state[0]

    return build


def _theirs(make_es: Callable[[Any, jax.Array], tuple[Any, Any]]) -> Callable:
    def build(start, step_size, cost, key):
        es, settings = make_es(start, step_size)

        def advance(state, episodes, own):
            ask_key, tell_key = jax.random.split(own)
            population, state = es.ask(ask_key, state, settings)
            values = jax.vmap(cost, (0, None))(population, episodes)
            return es.tell(tell_key, population, values, state, settings)[0]

        return es.init(key, start, settings), advance, es.get_mean

    return build


def _pairs(**options: Any) -> Callable[[jax.Array], zojax.Estimator]:
    return lambda key: zojax.two_point(
        SMOOTHING, POPULATION // 2, key=key, difference="central", **options
    )


def _zoar(key: jax.Array) -> zojax.Estimator:
    return zojax.zoar(
        SMOOTHING,
        POPULATION // 2,
        key=key,
        history_size=2,
        symmetric=True,
        sampler=gaussian(),
        shaping=z_score,
    )


def _with_adam(kind: Any) -> Callable[[Any, jax.Array], tuple[Any, Any]]:
    def make_es(start, step_size):
        schedule = optax.constant_schedule(SMOOTHING)
        es = kind(
            POPULATION, start, optimizer=optax.adam(step_size), std_schedule=schedule
        )
        return es, es.default_params

    return make_es


def _snes(start: Any, step_size: jax.Array) -> tuple[Any, Any]:
    """Its step size is the standard deviation that it begins with."""
    es = SNES(POPULATION, start)
    return es, es.default_params.replace(std_init=10 * jnp.asarray(step_size))


OURS = "zojax "
METHODS: dict[str, Callable] = {
    "zojax pairs, ranks": _ours(_pairs(sampler=gaussian(), shaping=centred_ranks)),
    "zojax pairs, z-scores": _ours(_pairs(sampler=gaussian(), shaping=z_score)),
    "zojax orthogonal pairs, ranks": _ours(
        _pairs(sampler=orthogonal(), shaping=centred_ranks)
    ),
    "zojax ZoAR pairs, z-scores": _ours(_zoar),
    "evosax Open_ES": _theirs(_with_adam(Open_ES)),
    "evosax ARS": _theirs(_with_adam(ARS)),
    "evosax SNES": _theirs(_snes),
}


def make_run(task: Task, method: str, generations: int) -> Run:
    """The run of a method, to be jitted and vmapped."""
    return _scan(task, generations, METHODS[method])
