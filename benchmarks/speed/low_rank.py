"""Steps along directions of low rank, beside copies perturbed at full rank.

A stack of tanh layers on a batch. The floor is K bare evaluations: K batches through
weights that all of them share. Memory is what XLA plans beside params and batch.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

import zojax
from benchmarks.speed.timing import device_line, median_ratio, take_turns
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, plain, tabulate
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
    timed = {n: functools.partial(run, weights, inputs) for n, run in compiled.items()}
    turns = take_turns(timed, REPEATS, tick)
    return [
        {
            "depth": depth,
            "width": width,
            "batch": batch,
            "program": name,
            "milliseconds": 1e3 * statistics.median(times),
            "over_floor": median_ratio(times, turns[FLOOR]),
            "over_copies": median_ratio(times, turns[COPIES]),
            "copies": compiled[name].memory_analysis().temp_size_in_bytes
            / weights.nbytes,
            **device_line(),
        }
        for name, times in turns.items()
    ]


def label(shape: tuple[int, int, int]) -> str:
    depth, width, batch = shape
    return f"{depth} x {width} x {width}, batch {batch}"


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each model and batch."""
    return {
        label(shape): functools.partial(measure, shape, seed)
        for shape in (FULL if full else QUICK)
    }


def tables(frame: pd.DataFrame) -> list[Table]:
    columns = ["", "ms", "/ evaluations", "/ copies", "memory, of params"]
    out = []
    for name, part in frame.groupby("cell", sort=False):
        rows = [
            [
                row["program"],
                *(plain(row[c]) for c in ("milliseconds", "over_floor", "over_copies")),
                plain(row["copies"]),
            ]
            for _, row in part.iterrows()
        ]
        out.append(tabulate(f"{name}, K = {NUM_DIRECTIONS}", columns, rows))
    last = frame.iloc[-1]
    out[-1].caption = (
        f"{last['device']}, JAX {last['jax']}, medians of {REPEATS} turns; memory as"
        " XLA plans it, beside params and batch."
    )
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    out = []
    for name, part in frame.groupby("cell", sort=False):
        factors = part.set_index("program").loc[FACTORS]
        copies = part.set_index("program").loc[COPIES]
        out.append(
            f"{name}: at rank 1 a step takes {plain(factors['over_copies'])} times that"
            f" with {NUM_DIRECTIONS} copies of full rank,"
            f" {plain(factors['over_floor'])} times {NUM_DIRECTIONS} bare evaluations,"
            f" and {plain(factors['copies'])}"
            f" copies of params for {plain(copies['copies'])}."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(8, 3.8), layout="constrained")
    axis = out.subplots()
    names = list(dict.fromkeys(frame["program"]))[::-1]
    groups = list(frame.groupby("cell", sort=False))
    height = 0.8 / len(groups)
    for i, (colour, (name, part)) in enumerate(zip(COLOURS, groups, strict=False)):
        ratio = part.set_index("program").loc[names]["over_floor"]
        places = [j + (len(groups) / 2 - i - 0.5) * height for j in range(len(ratio))]
        axis.barh(places, ratio, height=height, color=colour, label=name)
    axis.set_yticks(range(len(names)), names)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set(xscale="log", xlabel=f"time over {NUM_DIRECTIONS} bare evaluations")
    axis.grid(axis="x", alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    return out


STUDY = Study("Directions of low rank", cells, tables, findings, figure, timed=True)
