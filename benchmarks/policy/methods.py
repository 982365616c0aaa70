"""Ours and evosax's: a whole run is one scan, one program for all methods of a task.

An environment takes far longer to compile than a method, so the method is a number too.
"""

from __future__ import annotations

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

PyTree = Any
POPULATION = 32  # members of a generation


class Run(NamedTuple):
    """What a run gives."""

    returns: jax.Array  # f[generations], of the mean before each
    first: PyTree  # params
    last: PyTree


class Search(NamedTuple):
    """A method that is asked for members and told their costs."""

    state: PyTree  # the first
    ask: Callable  # (state, key) -> members, state
    tell: Callable  # (state, key, members, costs) -> state
    mean_of: Callable[[PyTree], PyTree]


def best_half(values: jax.Array) -> jax.Array:
    """The utilities of SNES as a shaping: log-weights of the better half, the rest 0.

    -max(0, ln(n/2 + 1) - ln(place)), place 1 the lowest; equal values share theirs.
    """
    count = jnp.sum(jnp.isfinite(values)).astype(values.dtype)
    place = (centred_ranks(values) + 0.5) * (count - 1) + 1
    return -jnp.maximum(0, jnp.log(count / 2 + 1) - jnp.log(place))


def _adam(step_size: Any) -> optax.GradientTransformation:
    """For all but SNES: with less momentum than usual, of few generations."""
    return optax.adam(step_size, b1=0.5)


def _ours(make_estimator: Callable[..., zojax.Estimator]) -> Callable[..., Search]:
    def build(start, step_size, smoothing, key):
        estimator = make_estimator(lambda count: smoothing, key=key)
        opt = optax.chain(estimator, _adam(step_size))

        def ask(state, key):
            del key
            params, opt_state = state
            return estimator.ask(opt_state[0], params), state

        def tell(state, key, members, costs):
            del key, members
            params, opt_state = state
            updates, opt_state = opt.update(None, opt_state, params, values=costs)
            return optax.apply_updates(params, updates), opt_state

        return Search((start, opt.init(start)), ask, tell, lambda state: state[0])

    return build


def _theirs(make_es: Callable[..., tuple[Any, Any]]) -> Callable[..., Search]:
    def build(start, step_size, smoothing, key):
        es, options = make_es(start, step_size, smoothing)
        ask = lambda state, key: es.ask(key, state, options)

        def tell(state, key, members, costs):
            return es.tell(key, members, costs, state, options)[0]

        return Search(es.init(key, start, options), ask, tell, es.get_mean)

    return build


def _pairs(**options: Any) -> Callable[..., zojax.Estimator]:
    return lambda smoothing, key: zojax.two_point(
        smoothing, POPULATION // 2, key=key, difference="central", **options
    )


def _with_adam(kind: Any) -> Callable[..., tuple[Any, Any]]:
    def make_es(start, step_size, smoothing):
        schedule = lambda generation: smoothing
        es = kind(POPULATION, start, optimizer=_adam(step_size), std_schedule=schedule)
        return es, es.default_params

    return make_es


def _snes(start: PyTree, step_size: Any, smoothing: Any) -> tuple[Any, Any]:
    """Begins with the smoothing as deviation; moves its mean by 10 step sizes of it.

    evosax's own rate is 1, a step size of 0.1.
    """
    es = SNES(POPULATION, start, optimizer=optax.sgd(10 * step_size))
    return es, es.default_params.replace(std_init=smoothing)


OURS = "zojax "
# build(start, step size, smoothing, key) -> Search.
METHODS: dict[str, Callable[..., Search]] = {
    "zojax pairs, ranks": _ours(_pairs(sampler=gaussian(), shaping=centred_ranks)),
    "zojax pairs, best half": _ours(_pairs(sampler=gaussian(), shaping=best_half)),
    "zojax orthogonal pairs, best half": _ours(
        _pairs(sampler=orthogonal(), shaping=best_half)
    ),
    "evosax Open_ES": _theirs(_with_adam(Open_ES)),
    "evosax ARS": _theirs(_with_adam(ARS)),
    "evosax SNES": _theirs(_snes),
}


def _one_of(number: jax.Array, searches: list[Search]) -> Search:
    """The search of that number; the states of the others stay as they are."""

    def of(i, function):
        """Applied to one state of all, which it replaces."""

        def branch(states, *args):
            *out, new = function(searches[i], states[i], *args)
            return (*out, (*states[:i], new, *states[i + 1 :]))

        return branch

    def choose(function):
        branches = [of(i, function) for i in range(len(searches))]
        return lambda states, *args: jax.lax.switch(number, branches, states, *args)

    told = choose(lambda search, *args: (search.tell(*args),))
    mean = choose(lambda search, state: (search.mean_of(state), state))
    return Search(
        tuple(search.state for search in searches),
        choose(lambda search, *args: search.ask(*args)),
        lambda *args: told(*args)[0],
        lambda states: mean(states)[0],
    )


def make_run(task: Task, names: tuple[str, ...]) -> Callable[..., Run]:
    """(number of the method, step size, smoothing, key, generations) -> Run."""
    player = make(task)
    num_asked, judged = POPULATION * task.episodes, task.judging

    def generation(search, state, key):
        ask_key, tell_key, *keys = jax.random.split(key, 4)
        members, state = search.ask(state, ask_key)
        mean = search.mean_of(state)
        # All members live through the same episodes. The mean is judged by others, in
        # the same batch, so that the environment is compiled once.
        both = lambda members, mean: jnp.concatenate(
            [
                jnp.repeat(members, task.episodes, axis=0),
                jnp.broadcast_to(mean, (judged, *mean.shape)),
            ]
        )
        shared = jnp.tile(jax.random.split(keys[0], task.episodes), POPULATION)
        keys = jnp.concatenate([shared, jax.random.split(keys[1], judged)])
        returns = jax.vmap(player.episode)(jax.tree.map(both, members, mean), keys)
        of_members, of_mean = jnp.split(returns, [num_asked])
        costs = -jnp.mean(of_members.reshape(POPULATION, -1), axis=1)
        return search.tell(state, tell_key, members, costs), jnp.mean(of_mean)

    def run(number, step_size, smoothing, key, generations):
        init_key, own_key, scan_key = jax.random.split(key, 3)
        first = player.init(init_key)
        builds = [METHODS[name] for name in names]
        search = _one_of(
            number, [build(first, step_size, smoothing, own_key) for build in builds]
        )
        advance = lambda state, key: generation(search, state, key)
        keys = jax.random.split(scan_key, generations)
        state, returns = jax.lax.scan(advance, search.state, keys)
        return Run(returns, first, search.mean_of(state))

    return run
