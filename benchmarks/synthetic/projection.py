"""The projection in high dimension: time and memory of a DAP step beside the sphere's.

The objective is the quadratic, as cheap as can be, so that a ratio is that of the
estimators. Temporary memory is what XLA plans for one update, in vectors of size d; the
K directions and perturbed points are in it unless chunk_size is 1.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pandas as pd
from matplotlib.figure import Figure

import zojax
from benchmarks.functions import quadratic
from benchmarks.speed.timing import timed_rows, training, where
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines
from zojax import perturbations

SMOOTHING, NUM_DIRECTIONS = 1e-3, 10
QUICK, FULL = (10_000, 100_000), (10_000, 100_000, 1_000_000, 10_000_000)
REPEATS = 7
ENTRIES = 1_000_000  # of all steps of a timed run together
BASE = "sphere"


def objective(x: zojax.PerturbedArray | jax.Array) -> jax.Array:
    """The quadratic, also where a direction is drawn inside it."""
    return quadratic(zojax.materialize(x))


def estimators(chunk_size: int | None) -> dict:
    """What is timed; the sphere is what the others are compared with."""
    shared = {"key": 0, "chunk_size": chunk_size}
    two_point = functools.partial(zojax.two_point, SMOOTHING, NUM_DIRECTIONS, **shared)
    dap = functools.partial(zojax.dap, SMOOTHING, NUM_DIRECTIONS, **shared)
    signs = perturbations.rademacher()
    lazy = perturbations.lazy(signs)
    return {
        BASE: two_point(sampler=perturbations.sphere()),
        "Rademacher": two_point(sampler=signs),
        "two-stage DAP": dap(),
        "two-stage DAP, Rademacher": dap(sampler=signs, base=signs),
        "DAP, Rademacher, guide replayed": dap(
            sampler=lazy, base=lazy, storage="replay"
        ),
        "DAP, average guide": dap(guide="average"),
    }


def temporary_vectors(
    opt: optax.GradientTransformationExtraArgs, dimension: int
) -> float:
    """Bytes that XLA plans for one update, in float32 vectors of size d."""
    like = jax.ShapeDtypeStruct((dimension,), jnp.float32)
    state = jax.eval_shape(opt.init, like)
    update = lambda state, x: opt.update(None, state, x, value_fn=objective)
    compiled = jax.jit(update).lower(state, like).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (4 * dimension)


def measure(dimension: int, chunk_size: int | None, seed: int, tick: Tick) -> list[Row]:
    """The estimators take turns."""
    x = jax.random.normal(jax.random.key(seed), (dimension,))
    steps = max(1, ENTRIES // dimension)
    opts = estimators(chunk_size)
    programs = {}
    for name, opt in opts.items():
        train = training(optax.chain(opt, optax.sgd(1e-4)), objective, steps)
        programs[name] = functools.partial(jax.jit(train), x), steps
    rows = timed_rows(programs, REPEATS, tick, {"ratio": BASE})
    sizes = {"dimension": dimension, "at_once": chunk_size or NUM_DIRECTIONS}
    return [
        {**sizes, "estimator": name, **row}
        | {"vectors": temporary_vectors(opts[name], dimension)}
        for name, row in rows.items()
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each dimension and chunk size."""
    return {
        f"{d}/chunk-{chunk or NUM_DIRECTIONS}": functools.partial(
            measure, d, chunk, seed
        )
        for d in (FULL if full else QUICK)
        for chunk in (None, 1)
    }


def tables(frame: pd.DataFrame) -> Tables:
    """A step with all directions at once, and with one at a time."""
    return {
        f"d = {d:,}, K = {NUM_DIRECTIONS}, {rows} at once: ms a step, ratio to the"
        " sphere's, memory in vectors of size d": part.set_index("estimator")[
            ["milliseconds", "ratio", "vectors"]
        ]
        for (d, rows), part in frame.groupby(["dimension", "at_once"])
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """The span over dimensions."""
    staged = frame[frame["estimator"] == "two-stage DAP"].groupby("at_once")
    (one, all_), memory = staged["ratio"], staged["vectors"].max()
    spans = [f"{x.min():.2f} to {x.max():.2f}" for x in (all_[1], one[1])]
    return [
        where(frame, REPEATS),
        f"A two-stage DAP step takes {spans[0]} times a sphere step with all"
        f" directions in memory, {spans[1]} times one at a time; memory one at a time:"
        f" {memory[1]:.1f} vectors of size d.",
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """Time and memory by dimension."""
    axes = {"x": "dimension", "hue": "estimator", "style": "at_once"}
    tall = frame.melt(
        list(axes.values()),
        ["milliseconds", "vectors"],
        var_name="what",
        value_name="a step",
    )
    return lines(tall, "xy", **axes, y="a step", col="what")


STUDY = Study(
    "DAP's projection in high dimension", cells, tables, findings, figure, timed=True
)
