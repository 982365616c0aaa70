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
from matplotlib.figure import Figure

import zojax
from benchmarks.speed.timing import bars, timed_rows, where
from benchmarks.study import Cell, Row, Study, Tables, Tick, plain
from zojax.perturbations import low_rank, rademacher

NUM_DIRECTIONS, SMOOTHING = 8, 1e-3
# Layers, their width, sentences in a batch.
QUICK = ((8, 512, 16), (8, 512, 256))
FULL = (*QUICK, (8, 2048, 256))
REPEATS = 7

FLOOR = "K evaluations"
COPIES = "full rank, all at once"
FACTORS = "rank 1, all at once"
# Name: (sampler, chunk_size).
STEPS = {
    COPIES: (rademacher(), None),
    "full rank, one at a time": (rademacher(), 1),
    FACTORS: (low_rank(1), None),
    "rank 1, one at a time": (low_rank(1), 1),
    "rank 4, all at once": (low_rank(4), None),
}


def model(weights: jax.Array, inputs: jax.Array) -> jax.Array:
    layer = lambda x, w: (jnp.tanh(x @ w), None)
    return jnp.mean(jax.lax.scan(layer, inputs, weights)[0] ** 2)


def evaluations(weights: jax.Array, inputs: jax.Array) -> jax.Array:
    """The sum of K values, each on inputs of its own."""
    scales = jnp.linspace(0.9, 1.1, NUM_DIRECTIONS)
    return jax.vmap(lambda scale: model(weights, scale * inputs))(scales).sum()


def step(sampler: zojax.Sampler, chunk_size: int | None, seed: int) -> Callable:
    """(weights, inputs) -> weights after a step of two_point and SGD."""
    opt = optax.chain(
        zojax.two_point(
            SMOOTHING,
            NUM_DIRECTIONS,
            key=seed,
            sampler=sampler,
            difference="leave_one_out",
            chunk_size=chunk_size,
        ),
        optax.sgd(1e-6),
    )

    def run(weights, inputs):
        state = opt.init(weights)
        f = lambda w: model(w, inputs)
        updates, _ = opt.update(None, state, weights, value_fn=f)
        return optax.apply_updates(weights, updates)

    return run


def measure(shape: tuple[int, int, int], seed: int, tick: Tick) -> list[Row]:
    """A row for each program; they take turns."""
    depth, width, batch = shape
    weights_key, inputs_key = jax.random.split(jax.random.key(seed))
    weights = jax.random.normal(weights_key, (depth, width, width)) / width**0.5
    inputs = jax.random.normal(inputs_key, (batch, width))
    programs = {FLOOR: evaluations}
    programs |= {name: step(*of, seed) for name, of in STEPS.items()}
    compiled = {
        name: jax.jit(run).lower(weights, inputs).compile()
        for name, run in programs.items()
    }
    timed = {
        n: (functools.partial(run, weights, inputs), 1) for n, run in compiled.items()
    }
    bases = {"over_floor": FLOOR, "over_copies": COPIES}
    rows = timed_rows(timed, REPEATS, tick, bases)
    planned = {
        n: run.memory_analysis().temp_size_in_bytes for n, run in compiled.items()
    }
    return [
        {"program": name, **row, "copies": planned[name] / weights.nbytes}
        for name, row in rows.items()
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each model and batch."""
    return {
        f"{depth} x {width} x {width}, batch {batch}": functools.partial(
            measure, (depth, width, batch), seed
        )
        for depth, width, batch in (FULL if full else QUICK)
    }


def tables(frame: pd.DataFrame) -> Tables:
    """Over bare evaluations, over copies at full rank; memory in copies of params."""
    columns = ["milliseconds", "over_floor", "over_copies", "copies"]
    return {
        f"{name}, K = {NUM_DIRECTIONS}": part.set_index("program")[columns]
        for name, part in frame.groupby("cell", sort=False)
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """Rank 1 beside full rank."""
    out = [f"{where(frame, REPEATS)} Memory as XLA plans it, beside params and batch."]
    for name, part in frame.groupby("cell", sort=False):
        rows = part.set_index("program")
        factors = rows.loc[FACTORS]
        out.append(
            f"{name}: at rank 1 a step takes {plain(factors['over_copies'])} times that"
            f" with {NUM_DIRECTIONS} copies of full rank,"
            f" {plain(factors['over_floor'])} times {NUM_DIRECTIONS} bare evaluations,"
            f" and {plain(factors['copies'])} copies of params for"
            f" {plain(rows.loc[COPIES, 'copies'])}."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    """A bar for each program."""
    return bars(frame, "over_floor", "program", "cell")


STUDY = Study("Directions of low rank", cells, tables, findings, figure, timed=True)
