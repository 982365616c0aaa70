"""Tokens per second of models that differ by factors of rank 1, beside one model."""

import jax
import jax.numpy as jnp
import numpy as np

import zojax
from benchmarks.language import beside, reward
from benchmarks.language.reward import BATCH, SMOOTHING
from benchmarks.study import Row, Tick
from zojax.perturbations import low_rank

MEMBERS, TOKENS = 8, 16  # models at once; tokens of each text


def measure(turns: int, tick: Tick) -> list[Row]:
    """A row for one model that writes as many texts, and one for members."""
    model, problems = reward.ready()
    write = reward.writer(model, TOKENS)
    some = problems.tokens[:BATCH]

    def members(params, tokens):
        directions = zojax.Directions(low_rank(1), jax.random.key(0), MEMBERS)
        # A value that all texts enter, or XLA would leave some out.
        value_fn = lambda params: jnp.mean(write(params, tokens).astype(jnp.float32))
        return zojax.evaluate(value_fn, params, directions, SMOOTHING)[0]

    programs = {
        "one model": (write, (model.params, np.tile(some, (MEMBERS, 1)))),
        f"{MEMBERS} members of rank 1": (members, (model.params, some)),
    }
    texts = MEMBERS * BATCH
    rows = beside.measure(programs, turns, tick)
    for row in rows:
        row["setting"] = f"{texts} texts of {TOKENS} tokens"
        row["tokens_per_second"] = texts * TOKENS / row["ms"] * 1e3
    return rows


STUDY = beside.study("Language: generation", measure)
