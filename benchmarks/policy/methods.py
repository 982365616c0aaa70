"""Ours and evosax's: a whole run is one scan, one program for all methods of a task.

An environment takes far longer to compile than a method, so the method is a number too.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from evosax.algorithms import ARS, SNES, Open_ES

import zojax
from benchmarks.policy.tasks import Task, make
from zojax.perturbations import gaussian, orthogonal
from zojax.shaping import centred_ranks

POPULATION = 32  # members of a generation
# For all but SNES: with less momentum than usual, of few generations.
adam = functools.partial(optax.adam, b1=0.5)


class Search(NamedTuple):
    """A method that is asked for members and told their costs."""

    state: Any  # the first
    ask: Callable  # (state, key) -> (members, mean), state
    tell: Callable  # (state, key, members, costs) -> (), state


def best_half(values: jax.Array) -> jax.Array:
    """The utilities of SNES as a shaping: log-weights of the better half, the rest 0.

    -max(0, ln(n/2 + 1) - ln(place)), place 1 the lowest; equal values share theirs.
    """
    count = jnp.sum(jnp.isfinite(values)).astype(values.dtype)
    place = (centred_ranks(values) + 0.5) * (count - 1) + 1
    return -jnp.maximum(0, jnp.log(count / 2 + 1) - jnp.log(place))


def _pairs(start, step_size, smoothing, key, **options) -> Search:
    """Central differences of ours, with these options."""
    estimator = zojax.two_point(
        lambda count: smoothing,
        POPULATION // 2,
        key=key,
        difference="central",
        **options,
    )
    opt = optax.chain(estimator, adam(step_size))

    def ask(state, key):
        del key
        params, opt_state = state
        return (estimator.ask(opt_state[0], params), params), state

    def tell(state, key, members, costs):
        del key, members
        params, opt_state = state
        updates, opt_state = opt.update(None, opt_state, params, values=costs)
        return (), (optax.apply_updates(params, updates), opt_state)

    return Search((start, opt.init(start)), ask, tell)


def _theirs(start, key, strategy, options) -> Search:
    def ask(state, key):
        members, state = strategy.ask(key, state, options)
        return (members, strategy.get_mean(state)), state

    def tell(state, key, members, costs):
        return (), strategy.tell(key, members, costs, state, options)[0]

    return Search(strategy.init(key, start, options), ask, tell)


def _with_adam(start, step_size, smoothing, key, kind) -> Search:
    schedule = lambda generation: smoothing
    strategy = kind(POPULATION, start, optimizer=adam(step_size), std_schedule=schedule)
    return _theirs(start, key, strategy, strategy.default_params)


def _snes(start, step_size, smoothing, key) -> Search:
    """Begins with the smoothing as deviation; moves its mean by 10 step sizes of it.

    evosax's own rate is 1, a step size of 0.1.
    """
    strategy = SNES(POPULATION, start, optimizer=optax.sgd(10 * step_size))
    options = strategy.default_params.replace(std_init=smoothing)
    return _theirs(start, key, strategy, options)


OURS = "zojax "
_halves = functools.partial(_pairs, shaping=best_half)
# (start, step size, smoothing, key) -> Search.
METHODS: dict[str, Callable[..., Search]] = {
    "zojax pairs, ranks": functools.partial(
        _pairs, sampler=gaussian(), shaping=centred_ranks
    ),
    "zojax pairs, best half": functools.partial(_halves, sampler=gaussian()),
    "zojax orthogonal pairs, best half": functools.partial(
        _halves, sampler=orthogonal()
    ),
    "evosax Open_ES": functools.partial(_with_adam, kind=Open_ES),
    "evosax ARS": functools.partial(_with_adam, kind=ARS),
    "evosax SNES": _snes,
}


def one_of(number: jax.Array, searches: list[Search]) -> Search:
    """The search of that number; the states of the others stay as they are."""

    def choose(functions):
        def branch(i):
            def run(states, *args):
                out, new = functions[i](states[i], *args)
                return out, (*states[:i], new, *states[i + 1 :])

            return run

        branches = [branch(i) for i in range(len(functions))]
        return lambda *args: jax.lax.switch(number, branches, *args)

    states, asks, tells = zip(*searches, strict=True)
    return Search(states, choose(asks), choose(tells))


def make_run(task: Task, names: tuple[str, ...]) -> Callable[..., tuple]:
    """(number of the method, step size, smoothing, key, generations) -> what it gives.

    Returns f[generations] of the mean before each, the first and the last params.
    """
    init, episode = make(task)

    def generation(search, state, key):
        ask_key, tell_key, *keys = jax.random.split(key, 4)
        (members, mean), state = search.ask(state, ask_key)
        # All members live through the same episodes. The mean is judged by others, in
        # the same batch, so that the environment is compiled once.
        both = lambda members, mean: jnp.concatenate(
            [
                jnp.repeat(members, task.episodes, axis=0),
                jnp.broadcast_to(mean, (task.judging, *mean.shape)),
            ]
        )
        shared = jnp.tile(jax.random.split(keys[0], task.episodes), POPULATION)
        keys = jnp.concatenate([shared, jax.random.split(keys[1], task.judging)])
        returns, _ = jax.vmap(episode)(jax.tree.map(both, members, mean), keys)
        of_members, of_mean = jnp.split(returns, [POPULATION * task.episodes])
        costs = -jnp.mean(of_members.reshape(POPULATION, -1), axis=1)
        _, state = search.tell(state, tell_key, members, costs)
        return state, jnp.mean(of_mean)

    def run(number, step_size, smoothing, key, generations):
        init_key, own_key, scan_key = jax.random.split(key, 3)
        first = init(init_key)
        setting = first, step_size, smoothing, own_key
        search = one_of(number, [METHODS[name](*setting) for name in names])
        advance = functools.partial(generation, search)
        keys = jax.random.split(scan_key, generations)
        state, returns = jax.lax.scan(advance, search.state, keys)
        (_, last), _ = search.ask(state, scan_key)
        return returns, first, last

    return run
