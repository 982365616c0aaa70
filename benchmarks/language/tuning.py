"""What is tuned: soft prompts, low-rank updates, cores, prefixes; scales or all."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

import zojax
from benchmarks.language.quantized import dequantize
from benchmarks.language.transformer import Adapter, Config, Params, embed, run_layers


def soft_prompt(params: Params, tokens: jax.Array) -> Adapter:
    """Virtual tokens that start as real ones, f32[S, D], for tokens i32[S]."""
    return {"soft": dequantize(params["embed"][tokens]).astype(jnp.float32)}


def lora(params: Params, rank: int, key: jax.Array, names: tuple[str, ...]) -> Adapter:
    """Low-rank updates W + 2 A B of stacked matrices: A random, B zero.

    A, f32[L, inputs, rank], is uniform with variance 4 / (3 inputs): as PyTorch's
    linear layers start, times alpha / rank = 2.
    """
    adapter = {}
    for i, name in enumerate(names):
        layers, inputs, outputs = params["layers"][name].shape
        shape, bound = (layers, inputs, rank), 2 / math.sqrt(inputs)
        of_name = jax.random.fold_in(key, i)
        a = jax.random.uniform(of_name, shape, minval=-bound, maxval=bound)
        adapter[name] = {"a": a, "b": jnp.zeros((layers, rank, outputs))}
    return {"lora": adapter}


def cores(
    function: Callable[[Params], jax.Array],
    params: Params,
    rank: int,
    names: tuple[str, ...],
    labels: jax.Array | None = None,
) -> Adapter:
    """Small cores between principal directions: W + A R B^T, R zero.

    R is [L, s, rank] for each matrix that is named; s is rank, or with labels f[B] 1:
    the input direction that predicts them. ``function`` of params runs the sentences
    that the directions are of; int8 matrices are searched as floats.
    """
    layers = params["layers"]
    floats = {name: dequantize(layers[name]) for name in names}
    at = lambda floats: function({**params, "layers": {**layers, **floats}})
    ranks = (rank if labels is None else 1, rank)
    bases = zojax.cores.principal_bases(at, floats, rank=ranks, targets=labels)
    return {
        "cores": zojax.cores.zeros(bases),
        "bases": {name: basis._asdict() for name, basis in bases.items()},
    }


def lora_of_cores(adapter: Adapter) -> Adapter:
    """The low-rank update A (R B^T) that cores are; other adapters as they are."""
    if "cores" not in adapter:
        return adapter
    lora = {}
    for name, core in adapter["cores"].items():
        basis = adapter["bases"][name]
        b = jnp.einsum("lrs,lns->lrn", core, basis["b"])
        lora[name] = {"a": basis["a"], "b": b}
    return {**adapter, "lora": lora}


def norms(params: Params) -> Adapter:
    """What the scales of the layers' norms change by, relative to them: f32[L, D]."""
    layers = params["layers"].items()
    changes = {name: jnp.zeros(x.shape) for name, x in layers if name.endswith("_norm")}
    return {"norms": changes}


def with_norms(params: Params, adapter: Adapter) -> Params:
    """The model with the scales of an adapter's norms, where it has some."""
    layers = dict(params["layers"])
    for name, change in adapter.get("norms", {}).items():
        layers[name] = layers[name] * (1 + change).astype(layers[name].dtype)
    return {**params, "layers": layers}


def prefix(config: Config, params: Params, tokens: jax.Array) -> Adapter:
    """Keys and values before each layer's own, f32[L, S, kv_heads, head_size].

    They start as those of tokens i32[S]: the model answers as if these came first.
    """
    x = embed(config, params, tokens[None], {})
    _, own = run_layers(config, params["layers"], x, {})
    return {"prefix": jax.tree.map(lambda leaf: leaf[:, 0].astype(jnp.float32), own)}
