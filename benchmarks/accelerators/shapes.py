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


def _leaf(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def opt(layers: int, width: int, heads: int) -> Model:
    """An OPT model's shapes, in bfloat16."""
    inner = {name: _leaf(layers, width, width) for name in "qkvo"}
    inner |= {name + "_bias": _leaf(layers, width) for name in ("q", "k", "v", "o")}
    for norm in ("attention_norm", "mlp_norm"):
        inner |= {norm: _leaf(layers, width), norm + "_bias": _leaf(layers, width)}
    inner |= {
        "up": _leaf(layers, width, 4 * width),
        "up_bias": _leaf(layers, 4 * width),
    }
    inner |= {
        "down": _leaf(layers, 4 * width, width),
        "down_bias": _leaf(layers, width),
    }
    params = {
        "embed": _leaf(50_272, width),
        "positions": _leaf(2050, width),
        "norm": _leaf(width),
        "norm_bias": _leaf(width),
        "layers": inner,
    }
    config = Config(heads, heads, width // heads, 1e-5, None, position_offset=2)
    return Model(config, params, None)


def llama(layers: int, width: int, heads: int, hidden: int) -> Model:
    """A Llama model's shapes, in bfloat16."""
    inner = {name: _leaf(layers, width, width) for name in "qkvo"}
    inner |= {norm: _leaf(layers, width) for norm in ("attention_norm", "mlp_norm")}
    inner |= {name: _leaf(layers, width, hidden) for name in ("gate", "up")}
    inner |= {"down": _leaf(layers, hidden, width)}
    table = _leaf(32_000, width)
    params = {"embed": table, "head": table, "norm": _leaf(width), "layers": inner}
    return Model(Config(heads, heads, width // heads, 1e-5, 1e4), params, None)


MODELS = {
    "OPT-125m": lambda: opt(12, 768, 12),
    "OPT-1.3b": lambda: opt(24, 2048, 32),
    "OPT-13b": lambda: opt(40, 5120, 40),
    "OPT-66b": lambda: opt(64, 9216, 72),
    "Llama-7b": lambda: llama(32, 4096, 32, 11_008),
}


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
    if name in ("embed", "head", "positions"):
        # Not over rows of a vocabulary, which is seldom a multiple of 32 times chips.
        return P(None, (data, MODEL) if data else MODEL)
    if name in ("q", "k", "v", "up", "gate"):
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
