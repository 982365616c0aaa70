"""Environments of gymnax, a policy of flax, and the mean return of some episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
from flax import linen as nn

PyTree = Any
WIDTH = 16


def _largest(outputs: jax.Array) -> jax.Array:
    return jnp.argmax(outputs)


class Task(NamedTuple):
    """An environment, and how a policy acts in it."""

    name: str
    length: int  # steps of an episode at most
    num_outputs: int
    act: Callable[[jax.Array], jax.Array]  # outputs of the policy -> action


TASKS = (
    Task("CartPole-v1", 500, 2, _largest),
    Task("Acrobot-v1", 500, 3, _largest),
    Task("MountainCarContinuous-v0", 999, 1, jnp.tanh),
)


class Policy(nn.Module):
    """Two hidden layers."""

    num_outputs: int

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        """Returns what an action is made of."""
        x = observation
        for _ in range(2):
            x = jnp.tanh(nn.Dense(WIDTH)(x))
        return nn.Dense(self.num_outputs)(x)


def make(
    task: Task,
) -> tuple[
    Callable[[jax.Array], PyTree], Callable[[PyTree, jax.Array, int], jax.Array]
]:
    """(key -> params, (params, key, number of episodes) -> their mean return).

    All that is random in an episode comes from its key: who gets the same key is judged
    by the same episodes.
    """
    env, settings = gymnax.make(task.name)
    policy = Policy(task.num_outputs)

    def init(key):
        observation, _ = env.reset(key, settings)
        return policy.init(key, observation)

    def episode(params, key):
        observation, state = env.reset(key, settings)

        def step(carry, key):
            observation, state, alive = carry
            action = task.act(policy.apply(params, observation))
            observation, state, reward, done, _ = env.step_env(
                key, state, action, settings
            )
            reward = alive * jnp.asarray(reward, jnp.float32)
            alive = alive * (1 - jnp.asarray(done, jnp.float32))
            return (observation, state, alive), reward

        start = (observation, state, jnp.ones(()))
        keys = jax.random.split(jax.random.fold_in(key, 1), task.length)
        return jnp.sum(jax.lax.scan(step, start, keys)[1])

    def mean_return(params, key, number):
        keys = jax.random.split(key, number)
        return jnp.mean(jax.vmap(episode, (None, 0))(params, keys))

    return init, mean_return
