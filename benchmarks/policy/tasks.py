"""A policy of flax in an environment, and the return of its episodes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.policy.worlds import World, of_brax, of_gymnax

WIDTH = 16


class Task(NamedTuple):
    """An environment, how a policy acts in it, and how much of it a run sees."""

    name: str
    make_world: Callable[[str], World]
    length: int  # steps of an episode at most
    num_outputs: int
    act: Callable[[jax.Array], jax.Array]  # outputs of the policy -> action
    episodes: int = 2  # of each member of a generation
    judging: int = 8  # episodes that the curve is made of, of the mean
    generations: int = 40


TASKS = (
    Task("CartPole-v1", of_gymnax, 500, 2, jnp.argmax),
    Task("Acrobot-v1", of_gymnax, 500, 3, jnp.argmax),
    Task("MountainCarContinuous-v0", of_gymnax, 999, 1, jnp.tanh, generations=30),
    Task("hopper", of_brax, 100, 3, jnp.tanh, episodes=1, judging=4, generations=16),
)


class Policy(nn.Module):
    """Two hidden layers."""

    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """An observation in; out what an action is made of."""
        for _ in range(2):
            x = jnp.tanh(nn.Dense(WIDTH)(x))
        return nn.Dense(self.num_outputs)(x)


def make(task: Task) -> tuple[Callable, Callable]:
    """Key -> params, and (params, key) -> an episode, whose chance is all in its key.

    That is its return, and f[length + 1, lines, 2, 2], what each of its states looks
    like, NaN when it is over. Where that is not used, nothing is spent on it.
    """
    world = task.make_world(task.name)
    policy = Policy(task.num_outputs)

    def episode(params, key):
        observation, state = world.reset(key)

        def step(carry, key):
            observation, state, alive = carry
            action = task.act(policy.apply(params, observation))
            observation, state, reward, done = world.step(key, state, action)
            # A world that is left alone after its end may leave the numbers.
            reward = jnp.where(alive > 0, jnp.asarray(reward, jnp.float32), 0)
            seen = jnp.where(alive > 0, world.sketch(state), jnp.nan)
            alive = alive * (1 - jnp.asarray(done, jnp.float32))
            return (observation, state, alive), (reward, seen)

        start = (observation, state, jnp.ones(()))
        keys = jax.random.split(jax.random.fold_in(key, 1), task.length)
        rewards, seen = jax.lax.scan(step, start, keys)[1]
        film = jnp.concatenate([world.sketch(state)[None], seen])
        return jnp.sum(rewards), film

    return lambda key: policy.init(key, world.reset(key)[0]), episode
