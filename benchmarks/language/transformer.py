"""A decoder-only transformer in plain JAX: Llama and OPT are two settings of it.

Layers are stacked: each leaf of ``params["layers"]`` has a leading axis over them, and
one ``lax.scan`` runs through. What a model has shows in its params: a gate makes the
MLP SwiGLU (else ReLU), a bias of a norm makes it a LayerNorm (else RMSNorm). Parts of
the params are materialized just before they are used, so that lazy perturbations are
drawn a layer, and a token, at a time.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.language.quantized import dequantize, product
from zojax import materialize

Params = dict[str, Any]
Adapter = dict[str, Any]
TOP = ("norm", "norm_bias", "project_out")


class Config(NamedTuple):
    """What the shapes of the params do not tell; hashable, for static arguments."""

    heads: int
    kv_heads: int
    head_size: int
    epsilon: float  # of the norms
    rope_base: float | None  # None: learned positions, as in OPT
    pre_norm: bool = True  # norm before attention and MLP, and at the end
    position_offset: int = 0  # OPT's table of positions starts at 2


class Text(NamedTuple):
    """What each layer kept of the texts before the inputs; their lengths differ."""

    k: jax.Array  # f[B, L, S, kv_heads, head_size], rotated to their positions
    v: jax.Array
    length: jax.Array  # i32[B]; what follows it in k and v is padding


def _norm(config: Config, params: Params, name: str, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    bias = params.get(name + "_bias")
    if bias is not None:
        wide -= wide.mean(axis=-1, keepdims=True)
    variance = jnp.mean(wide**2, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(variance + config.epsilon) * params[name]
    return (wide if bias is None else wide + bias).astype(x.dtype)


def _linear(params: Params, name: str, x: jax.Array, lora: Adapter) -> jax.Array:
    y = product(x, params[name])
    if name in lora:
        # W + scale A B, never formed; the scale sits in A.
        y += (x @ lora[name]["a"].astype(x.dtype)) @ lora[name]["b"].astype(x.dtype)
    bias = params.get(name + "_bias")
    return y if bias is None else y + bias


def _rotate(config: Config, x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary positions on x[B, T, heads, head_size]; halves are paired."""
    half = config.head_size // 2
    rates = config.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None] * rates
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def _attention(config, layer, x, lora, before, start):
    """Attends to what is before x, {} or {"k", "v"} f[(B,) S, ...], and to x itself.

    ``start``, i32[] or i32[B], is how many of the S count, and the first position of x.
    """
    batch, length, _ = x.shape
    split = lambda name, heads: _linear(layer, name, x, lora).reshape(
        batch, length, heads, config.head_size
    )
    q = split("q", config.heads)
    k, v = split("k", config.kv_heads), split("v", config.kv_heads)
    if config.rope_base is not None:
        positions = start[..., None] + jnp.arange(length)
        q, k = _rotate(config, q, positions), _rotate(config, k, positions)
    own = {"k": k, "v": v}
    seen = jnp.tril(jnp.ones((length, length), bool))
    if before:
        shape = (batch, *before["k"].shape[-3:])
        whole = lambda name: jnp.broadcast_to(before[name].astype(x.dtype), shape)
        k = jnp.concatenate([whole("k"), k], axis=1)
        v = jnp.concatenate([whole("v"), v], axis=1)
        earlier = jnp.arange(shape[1]) < jnp.broadcast_to(start, batch)[:, None]
        over = lambda mask, size: jnp.broadcast_to(mask, (batch, length, size))
        parts = over(earlier[:, None], shape[1]), over(seen, length)
        seen = jnp.concatenate(parts, axis=-1)[:, None, None]  # over heads
    groups = config.heads // config.kv_heads
    q = q.reshape(batch, length, config.kv_heads, groups, config.head_size)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k).astype(jnp.float32)
    scores = jnp.where(seen, scores / math.sqrt(config.head_size), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights, v)
    mixed = mixed.reshape(batch, length, config.heads * config.head_size)
    return _linear(layer, "o", mixed, lora), own


def _mlp(layer: Params, x: jax.Array, lora: Adapter) -> jax.Array:
    up = _linear(layer, "up", x, lora)
    gated = "gate" in layer
    up = jax.nn.silu(_linear(layer, "gate", x, lora)) * up if gated else jax.nn.relu(up)
    return _linear(layer, "down", up, lora)


def _block(config, layer, x, lora, *before):
    norm = lambda name, y: _norm(config, layer, name, y)
    attention = lambda y: _attention(config, layer, y, lora, *before)
    if config.pre_norm:
        mixed, own = attention(norm("attention_norm", x))
        x = x + mixed
        return x + _mlp(layer, norm("mlp_norm", x), lora), own
    mixed, own = attention(x)
    x = norm("attention_norm", x + mixed)
    return norm("mlp_norm", x + _mlp(layer, x, lora)), own


def embed(
    config: Config,
    params: Params,
    tokens: jax.Array,
    adapter: Adapter,
    start: jax.Array | int = 0,
) -> jax.Array:
    """Embeds tokens i32[B, T] after the S soft tokens, if any: f[B, S + T, D].

    ``start``, i32[] or i32[B], is the first position.
    """
    x = dequantize(materialize(params["embed"][tokens]))
    if "soft" in adapter:
        soft = materialize(adapter["soft"]).astype(x.dtype)
        soft = jnp.broadcast_to(soft, (len(tokens), *soft.shape))
        x = jnp.concatenate([soft, x], axis=1)
    if "project_in" in params:
        x = x @ materialize(params["project_in"])
    if config.rope_base is None:
        if "prefix" in adapter:
            start = adapter["prefix"]["k"].shape[1]
        first = config.position_offset + jnp.asarray(start)[..., None]
        x += materialize(params["positions"][first + jnp.arange(x.shape[1])])
    return x


def run_layers(
    config: Config,
    layers: Params,
    x: jax.Array,
    adapter: Adapter,
    text: Text | None = None,
    read: jax.Array | None = None,
) -> tuple[jax.Array, Adapter]:
    """Runs x[B, T, D] through stacked layers: (x, what each layer kept).

    That is its keys "k" and values "v", and where positions i32[B] are to be read its
    "state" there, f[B, D]. ``text`` is what came before x, if that was run already.
    """
    before, start = adapter.get("prefix", {}), jnp.zeros((), jnp.int32)
    if text is not None:
        before = {"k": jnp.moveaxis(text.k, 1, 0), "v": jnp.moveaxis(text.v, 1, 0)}
        start = text.length
    elif before:
        start += before["k"].shape[1]

    def body(x, slices):
        layer, lora, before = materialize(slices)
        x, own = _block(config, layer, x, lora, before, start)
        if read is not None:
            own["state"] = x[jnp.arange(len(read)), read]
        return x, own

    return jax.lax.scan(body, x, (layers, adapter.get("lora", {}), before))


def finish(config: Config, params: Params, x: jax.Array) -> jax.Array:
    """What follows the layers: the last norm and OPT-350m's projection."""
    top = materialize({name: params[name] for name in TOP if name in params})
    if "norm" in top:
        x = _norm(config, top, "norm", x)
    return x @ top["project_out"] if "project_out" in top else x


def word_logits(
    params: Params, states: jax.Array, words: jax.Array | None = None
) -> jax.Array:
    """Logits f32[..., W] of words i32[W], by default of all, from states f[..., D]."""
    table = params.get("head", params["embed"])
    rows = dequantize(materialize(table if words is None else table[words]))
    return jnp.einsum("...d,wd->...w", states, rows, preferred_element_type=jnp.float32)


def forward(config: Config, params: Params, tokens: jax.Array) -> jax.Array:
    """Logits f32[B, T, V] of every next token.

    Attention is causal: what follows a position, as padding does, does not reach it.
    """
    x, _ = run_layers(config, params["layers"], embed(config, params, tokens, {}), {})
    return word_logits(params, finish(config, params, x))
