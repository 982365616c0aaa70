"""What is tuned: soft prompts, low-rank updates, cores, prefixes; scales or all."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

import zojax
from benchmarks.language.quantized import dequantize
from benchmarks.language.transformer import Adapter, Config, Params, embed, run_layers

__all__ = [
    "TUNINGS",
    "cores",
    "lora",
    "lora_of_cores",
    "norms",
    "prefix",
    "soft_prompt",
    "with_norms",
]

TUNINGS = ("lora", "cores", "norms", "prompt", "prefix", "scales", "all")


def soft_prompt(params: Params, tokens: jax.Array) -> Adapter:
    """Virtual tokens that start as real ones, f32[S, D], for tokens i32[S]."""
    return {"soft": dequantize(params["embed"][tokens]).astype(jnp.float32)}


def lora(
    params: Params,
    rank: int,
    key: jax.Array,
    *,
    names: tuple[str, ...] = ("q", "v"),
    scale: float = 2.0,
) -> Adapter:
    """Low-rank updates W + A B of stacked matrices: A random, B zero.

    Args:
      params: whose ``layers`` are adapted.
      rank: r.
      key: for A, uniform with variance scale^2 / (3 inputs), as PyTorch's linear layers
        start.
      names: which matrices.
      scale: alpha / r; it multiplies A here, once.

    Returns:
      {"lora": {name: {"a": f32[L, inputs, r], "b": f32[L, r, outputs]}}}.
    """
    adapter = {}
    for i, name in enumerate(names):
        layers, inputs, outputs = params["layers"][name].shape
        bound = scale / math.sqrt(inputs)
        a = jax.random.uniform(
            jax.random.fold_in(key, i),
            (layers, inputs, rank),
            minval=-bound,
            maxval=bound,
        )
        adapter[name] = {"a": a, "b": jnp.zeros((layers, rank, outputs))}
    return {"lora": adapter}


def cores(
    function: Callable[[Params], jax.Array],
    params: Params,
    rank: int,
    *,
    names: tuple[str, ...] = ("q", "k", "v"),
    labels: jax.Array | None = None,
) -> Adapter:
    """Small cores between principal directions: W + A R B^T, R zero.

    Args:
      function: params -> anything, which runs the sentences that the directions are of.
      params: of the model; int8 matrices are searched as floats.
      rank: r.
      names: which matrices of the layers.
      labels: f[B]; the one input direction predicts them. None: r principal ones.

    Returns:
      {"cores": {name: f32[L, s, r]}, "bases": {name: {"a": f32[L, inputs, s],
      "b": f32[L, outputs, r]}}}, s being 1 with labels and r without.
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
    of = lambda basis, core: {
        "a": basis["a"],
        "b": jnp.einsum("lrs,lns->lrn", core, basis["b"]),
    }
    names = adapter["cores"]
    lora = {name: of(adapter["bases"][name], names[name]) for name in names}
    return {**adapter, "lora": lora}


def norms(params: Params) -> Adapter:
    """What the scales of the layers' norms change by, relative to them: f32[L, D]."""
    names = (name for name in params["layers"] if name.endswith("_norm"))
    like = {name: params["layers"][name].shape for name in names}
    return {"norms": {name: jnp.zeros(shape) for name, shape in like.items()}}


def with_norms(params: Params, adapter: Adapter) -> Params:
    """The model with the scales of an adapter's norms, where it has some."""
    layers = params["layers"]
    of = lambda name, change: layers[name] * (1 + change).astype(layers[name].dtype)
    scaled = {name: of(name, x) for name, x in adapter.get("norms", {}).items()}
    return {**params, "layers": {**layers, **scaled}}


def prefix(config: Config, params: Params, tokens: jax.Array) -> Adapter:
    """Keys and values before each layer's own, which start as those of real tokens.

    Args:
      config: of the model.
      params: of the model.
      tokens: i32[S].

    Returns:
      {"prefix": {"k", "v": f32[L, S, kv_heads, head_size]}}; the model then answers as
      if the text followed these tokens.
    """
    x = embed(config, params, tokens[None], {})
    _, own = run_layers(config, params["layers"], x, {})
    return {"prefix": jax.tree.map(lambda leaf: leaf[:, 0].astype(jnp.float32), own)}
