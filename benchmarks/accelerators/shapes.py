"""Shapes of language models, and how they lie on several chips."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.language.problem import Model
from benchmarks.language.transformer import Config

DATA, MODEL = "data", "model"


# Layers, width, heads.
MODELS = {
    "OPT-125m": (12, 768, 12),
    "OPT-1.3b": (24, 2048, 32),
    "OPT-13b": (40, 5120, 40),
    "OPT-66b": (64, 9216, 72),
}


def opt(layers: int, width: int, heads: int) -> Model:
    """An OPT model's shapes, in bfloat16."""
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    square, row = leaf(layers, width, width), leaf(layers, width)
    inner = {"up": leaf(layers, width, 4 * width), "up_bias": leaf(layers, 4 * width)}
    inner |= {"down": leaf(layers, 4 * width, width), "down_bias": row}
    for name in "qkvo":
        inner |= {name: square, name + "_bias": row}
    for norm in ("attention_norm", "mlp_norm"):
        inner |= {norm: row, norm + "_bias": row}
    params = {"embed": leaf(50_272, width), "positions": leaf(2050, width)}
    params |= {"norm": leaf(width), "norm_bias": leaf(width), "layers": inner}
    config = Config(heads, heads, width // heads, 1e-5, None, position_offset=2)
    return Model(config, params, None)


class Layout(NamedTuple):
    """What is spread over the two axes of a mesh."""

    label: str
    mesh: Mesh  # axes DATA and MODEL
    batch: bool = False  # sentences over DATA
    params: bool = False  # params over DATA too, beside MODEL

    def place(self, tree: Any) -> Any:
        """The shapes of params, state or adapters, where they lie."""

        def leaf(path, x):
            name = getattr(path[-1], "key", "") if path else ""
            spec = _spec(name, DATA if self.params else None)
            return self._at(x, spec if len(spec) == x.ndim else P())

        return jax.tree_util.tree_map_with_path(leaf, tree)

    def place_batch(self, batch: Any) -> Any:
        spec = P(DATA) if self.batch else P()
        return jax.tree.map(lambda x: self._at(x, spec), batch)

    def _at(self, x: Any, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec)
        )


def _spec(name: str, data: str | None) -> P:
    """Matrices lie as in Megatron: what comes in, or what goes out, over MODEL."""
    if name in ("embed", "positions"):
        # Not over rows of a vocabulary, which is seldom a multiple of 32 times chips.
        return P(None, (data, MODEL) if data else MODEL)
    if name in ("q", "k", "v", "up"):
        return P(None, data, MODEL)
    if name in ("o", "down"):
        return P(None, MODEL, data)
    if name in ("q_bias", "k_bias", "v_bias", "up_bias"):
        return P(None, MODEL)
    return P()


def layouts(devices: tuple[jax.Device, ...]) -> dict[str, Layout]:
    """How a model may lie on these devices."""
    number = len(devices)
    mesh = lambda data: Mesh(np.reshape(devices, (data, number // data)), (DATA, MODEL))
    alone = Mesh(np.reshape(devices[:1], (1, 1)), (DATA, MODEL))
    one_chip = {"one chip": Layout("one chip", alone)}
    if number == 1:
        return one_chip
    wide = 2 ** (number.bit_length() // 2)  # 2 of 2 or 4, 4 of 8, 8 of 64
    rows = number // wide
    return one_chip | {
        "params": Layout("params sharded", mesh(1)),
        "batch": Layout("batch spread", mesh(number), batch=True),
        "directions": Layout("directions spread", mesh(number)),
        "params, batch": Layout(
            "params sharded, batch spread", mesh(rows), batch=True, params=True
        ),
        "params, directions": Layout("params sharded, directions spread", mesh(rows)),
    }
