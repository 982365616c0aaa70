"""The victim of the attack: a small CNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks.attack.data import NUM_CLASSES, Images

BATCH = 50


class Cnn(nn.Module):
    """Two convolutions and a dense layer: f[n, h, w, c] -> log-probabilities."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(16, (5, 5), strides=2)(images))
        x = nn.relu(nn.Conv(32, (5, 5), strides=2)(x))
        x = nn.Dense(NUM_CLASSES)(x.reshape(x.shape[0], -1))
        return nn.log_softmax(x)


log_probs = jax.jit(Cnn().apply)
"""(params, images f[n, h, w, c]) -> f[n, 10]."""


def init(seed: int, shape: Sequence[int]) -> Any:
    """Returns fresh parameters for images of a shape (h, w, c)."""
    return Cnn().init(jax.random.key(seed), jnp.zeros((1, *shape)))


def train(data: Images, epochs: int, seed: int, on_epoch: Callable[[], None]) -> Any:
    """Trains with Adam on randomly shifted images and returns the parameters."""
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    num_batches = len(labels) // BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, epochs * num_batches))

    def loss(params, batch, key):
        shifts = jax.random.randint(key, (BATCH, 2), -1, 2)
        shifted = jax.vmap(lambda x, by: jnp.roll(x, by, (0, 1)))(images[batch], shifts)
        return -Cnn().apply(params, shifted)[jnp.arange(BATCH), labels[batch]].mean()

    # Steps are driven from Python: inside a lax.scan the gradients of convolutions are
    # several times slower on a CPU.
    @jax.jit
    def step(params, state, batch, key):
        updates, state = optimizer.update(jax.grad(loss)(params, batch, key), state)
        return optax.apply_updates(params, updates), state

    params = init(seed, images.shape[1:])
    state = optimizer.init(params)
    data_key = jax.random.fold_in(jax.random.key(seed), 1)
    for epoch_key in jax.random.split(data_key, epochs):
        order_key, *step_keys = jax.random.split(epoch_key, 1 + num_batches)
        order = np.asarray(jax.random.permutation(order_key, len(labels)))
        for i, step_key in enumerate(step_keys):
            batch = order[i * BATCH : (i + 1) * BATCH]
            params, state = step(params, state, batch, step_key)
        jax.block_until_ready(params)
        on_epoch()
    return params
