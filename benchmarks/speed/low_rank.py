"""Steps along directions of low rank, beside copies perturbed at full rank.

A stack of tanh layers on a batch. The floor is K bare evaluations: K batches through
weights that all of them share. Memory is what XLA plans beside params and batch.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
import pandas as pd

import zojax
from benchmarks.speed.timing import compare, comparison, ratios
from benchmarks.study import Cell, Row, Tick
from zojax.perturbations import low_rank, rademacher

NUM_DIRECTIONS, SMOOTHING = 8, 1e-3
# Layers, their width, sentences in a batch.
QUICK = ((8, 512, 16), (8, 512, 256))
FULL = (*QUICK, (8, 2048, 256))
REPEATS = 7
FLOOR, COPIES = "K evaluations", "full rank, all at once"
FACTORS = "rank 1, all at once"
# Name: (sampler, chunk_size).
STEPS = {
    COPIES: (rademacher(), None),
    "full rank, one at a time": (rademacher(), 1),
    FACTORS: (low_rank(1), None),
    "rank 4, all at once": (low_rank(4), None),
}


def model(weights: jax.Array, inputs: jax.Array) -> jax.Array:
    """Mean square of the last layer."""
    layer = lambda x, w: (jnp.tanh(x @ w), None)
    return jnp.mean(jax.lax.scan(layer, inputs, weights)[0] ** 2)


def evaluations(weights: jax.Array, inputs: jax.Array) -> jax.Array:
    """The sum of K values, each on inputs of its own."""
    scales = jnp.linspace(0.9, 1.1, NUM_DIRECTIONS)
    return jax.vmap(lambda scale: model(weights, scale * inputs))(scales).sum()


def step(sampler: zojax.Sampler, chunk_size: int | None, seed: int) -> Callable:
    """(weights, inputs) -> weights after a step of two_point and SGD."""
    settings = {"sampler": sampler, "chunk_size": chunk_size}
    settings |= {"key": seed, "difference": "leave_one_out"}
    first = zojax.two_point(SMOOTHING, NUM_DIRECTIONS, **settings)
    opt = optax.chain(first, optax.sgd(1e-6))

    def run(weights, inputs):
        f = lambda w: model(w, inputs)
        updates, _ = opt.update(None, opt.init(weights), weights, value_fn=f)
        return optax.apply_updates(weights, updates)

    return run


def measure(depth: int, width: int, batch: int, seed: int, tick: Tick) -> list[Row]:
    """Time and memory of each program."""
    weights_key, inputs_key = jax.random.split(jax.random.key(seed))
    weights = jax.random.normal(weights_key, (depth, width, width)) / width**0.5
    inputs = jax.random.normal(inputs_key, (batch, width))
    programs = {FLOOR: evaluations}
    programs |= {name: step(*of, seed) for name, of in STEPS.items()}
    timed, copies = {}, {}
    for name, program in programs.items():
        compiled = jax.jit(program).lower(weights, inputs).compile()
        timed[name] = functools.partial(compiled, weights, inputs), 1
        planned = compiled.memory_analysis().temp_size_in_bytes
        copies[name] = planned / weights.nbytes
    rows = compare(timed, {"over_copies": COPIES}, REPEATS, tick)
    return [row | {"copies": copies[row["program"]]} for row in rows]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each model and batch."""
    return {
        f"{depth} x {width} x {width}, batch {batch}": functools.partial(
            measure, depth, width, batch, seed
        )
        for depth, width, batch in (FULL if full else QUICK)
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """What rank 1 saves."""
    return ratios(frame, "over_copies", [FACTORS], f"{NUM_DIRECTIONS} copies of params")


COLUMNS = ("ms", "copies", "over_copies")
STUDY = comparison("Directions of low rank", cells, findings, COLUMNS)
