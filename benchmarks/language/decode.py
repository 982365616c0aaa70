"""Greedy generation with cached keys and values, compiled once."""

import jax
import jax.numpy as jnp

from benchmarks.language.transformer import (
    Config,
    Params,
    Text,
    embed,
    finish,
    run_layers,
    word_logits,
)


def _next(config: Config, params: Params, x: jax.Array) -> jax.Array:
    """The most likely next token i32[B] after states f[B, D]."""
    scores = word_logits(params, finish(config, params, x))
    return scores.argmax(axis=-1).astype(jnp.int32)


def _begin(config: Config, params: Params, shared: jax.Array, batch: int) -> Text:
    """What each layer keeps of tokens i32[S] that all prompts begin with, run once."""
    x = embed(config, params, shared[None], {})
    _, own = run_layers(config, params["layers"], x, {})
    rows = lambda kept: jnp.repeat(jnp.moveaxis(kept, 1, 0), batch, axis=0)
    length = jnp.full(batch, len(shared), jnp.int32)
    return Text(rows(own["k"]), rows(own["v"]), length)


def generate(
    config: Config,
    params: Params,
    shared: jax.Array,
    tokens: jax.Array,
    last: jax.Array,
    number: int,
) -> jax.Array:
    """Continues prompts i32[B, T] by N tokens, each the most likely one: i32[B, N].

    Before each comes ``shared`` i32[S]. Prompts are padded on the right, ``last``
    i32[B] is the index of each one's last token. They run once; each further token runs
    alone, beside the keys and values that every layer kept of what came before it.
    """
    rows = jnp.arange(len(last))
    before = _begin(config, params, shared, len(last))
    x = embed(config, params, tokens, {}, before.length)
    x, own = run_layers(config, params["layers"], x, {}, before)
    token = _next(config, params, x[rows, last])
    # [B, L, S + T + N - 1, heads, size]: padding is overwritten, token by token.
    room = ((0, 0), (0, 0), (0, number - 1), (0, 0), (0, 0))
    kept = [jnp.pad(jnp.moveaxis(own[name], 1, 0), room) for name in "kv"]
    parts = zip((before.k, before.v), kept, strict=True)
    kept = [jnp.concatenate(part, axis=2) for part in parts]

    def step(carry, i):
        token, kept = carry
        place = before.length + last + 1 + i
        x = embed(config, params, token[:, None], {}, place)
        x, own = run_layers(config, params["layers"], x, {}, Text(*kept, place))
        put = lambda name, old: old.at[rows, :, place].set(
            jnp.moveaxis(own[name][:, :, 0], 1, 0)
        )
        kept = [put(name, old) for name, old in zip("kv", kept, strict=True)]
        token = _next(config, params, x[:, 0])
        return (token, kept), token

    steps = jnp.arange(number - 1, dtype=jnp.int32)
    _, others = jax.lax.scan(step, (token, kept), steps)
    return jnp.concatenate([token[:, None], others.T], axis=1)
