"""Environments of gymnax and brax in one form, and how each is drawn."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np

State = Any


class World(NamedTuple):
    """An environment as pure functions."""

    reset: Callable[[jax.Array], tuple[jax.Array, State]]  # key -> observation, state
    step: Callable  # (key, state, action) -> observation, state, reward, done
    sketch: Callable[[State], jax.Array]  # -> f[lines, 2 ends, 2]: x, z


def _lines(*points: tuple[Any, Any]) -> jax.Array:
    """A line through points, as its segments."""
    ends = jnp.stack([jnp.stack([jnp.ravel(c)[0] for c in point]) for point in points])
    return jnp.stack([ends[:-1], ends[1:]], axis=1)


def _cart_pole(state: State) -> jax.Array:
    x, top = state.x, (state.x + jnp.sin(state.theta), jnp.cos(state.theta))
    cart = _lines((x - 0.25, 0 * x), (x + 0.25, 0 * x))
    return jnp.concatenate([cart, _lines((x, 0 * x), top)])


def _acrobot(state: State) -> jax.Array:
    first, both = state.joint_angle1, state.joint_angle1 + state.joint_angle2
    zero = 0 * first
    elbow = jnp.sin(first), -jnp.cos(first)
    tip = elbow[0] + jnp.sin(both), elbow[1] - jnp.cos(both)
    return _lines((zero, zero), elbow, tip)


def hill(x: Any) -> Any:
    """How high the mountain car's road lies, to be drawn."""
    return 0.45 * jnp.sin(3 * x) + 0.55


def _mountain_car(state: State) -> jax.Array:
    x = state.position
    return _lines((x, hill(x)), (x, hill(x)))


SKETCHES = {
    "CartPole-v1": _cart_pole,
    "Acrobot-v1": _acrobot,
    "MountainCarContinuous-v0": _mountain_car,
}


def of_gymnax(name: str) -> World:
    """An environment of gymnax."""
    env, settings = gymnax.make(name)

    def step(key, state, action):
        return env.step_env(key, state, action, settings)[:4]

    return World(lambda key: env.reset(key, settings), step, SKETCHES[name])


@functools.cache
def of_brax(name: str) -> World:
    """An environment of brax, by its backend of springs, the cheapest on a CPU."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # what it does without, and its own age
        from brax import envs, math

        env = envs.get_environment(name, backend="spring")

    # The capsules of its links.
    model = env.sys.mj_model
    solid = np.flatnonzero(model.geom_bodyid > 0)
    links = model.geom_bodyid[solid] - 1
    centres, turns = model.geom_pos[solid], model.geom_quat[solid]
    halves = model.geom_size[solid, 1]

    def reset(key):
        state = env.reset(key)
        return state.obs, state

    def step(key, state, action):
        del key
        state = env.step(state, action)
        return state.obs, state, state.reward, state.done

    def sketch(state):
        x = state.pipeline_state.x

        def ends(link, centre, turn, half):
            along = math.rotate(jnp.array([0.0, 0.0, 1.0]), jnp.asarray(turn)) * half
            at = [centre - along, centre + along]
            placed = [x.pos[link] + math.rotate(p, x.rot[link]) for p in at]
            return jnp.stack(placed)[:, jnp.array([0, 2])]

        each = zip(links, centres, turns, halves, strict=True)
        return jnp.stack([ends(*capsule) for capsule in each])

    return World(reset, step, sketch)
