"""Environments of gymnax and brax in one form, and how each is drawn."""

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


class World(NamedTuple):
    """An environment as pure functions."""

    reset: Callable  # key -> observation, state
    step: Callable  # (key, state, action) -> observation, state, reward, done
    sketch: Callable[[Any], jax.Array]  # state -> f[lines, 2 ends, 2]: x, z


def _through(*points: tuple[Any, Any]) -> jax.Array:
    """A line through points, as its segments."""
    ends = jnp.stack([jnp.stack([jnp.ravel(c)[0] for c in point]) for point in points])
    return jnp.stack([ends[:-1], ends[1:]], axis=1)


def _cart_pole(state):
    x, zero = state.x, 0 * state.x
    top = x + jnp.sin(state.theta), jnp.cos(state.theta)
    cart = _through((x - 0.25, zero), (x + 0.25, zero))
    return jnp.concatenate([cart, _through((x, zero), top)])


def _acrobot(state):
    first, both = state.joint_angle1, state.joint_angle1 + state.joint_angle2
    elbow = jnp.sin(first), -jnp.cos(first)
    tip = elbow[0] + jnp.sin(both), elbow[1] - jnp.cos(both)
    return _through((0 * first, 0 * first), elbow, tip)


def hill(x: Any) -> Any:
    """How high the mountain car's road lies, to be drawn."""
    return 0.45 * jnp.sin(3 * x) + 0.55


def _mountain_car(state):
    place = state.position, hill(state.position)
    return _through(place, place)


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
    rotate = jax.vmap(math.rotate)
    along = jnp.asarray(model.geom_size[solid, 1:2] * [[0.0, 0.0, 1.0]])
    halves = rotate(along, jnp.asarray(model.geom_quat[solid]))
    centres = model.geom_pos[solid]

    def reset(key):
        state = env.reset(key)
        return state.obs, state

    def step(key, state, action):
        del key
        state = env.step(state, action)
        return state.obs, state, state.reward, state.done

    def sketch(state):
        x = state.pipeline_state.x
        ends = [
            x.pos[links] + rotate(end, x.rot[links])
            for end in (centres - halves, centres + halves)
        ]
        return jnp.stack(ends, axis=1)[..., jnp.array([0, 2])]

    return World(reset, step, sketch)
