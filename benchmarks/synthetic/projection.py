"""The projection in high dimension: time and memory of a DAP step beside the sphere's.

The objective is the quadratic, as cheap as can be, so that a ratio is that of the
estimators. Temporary memory is what XLA plans for one update, in vectors of size d; the
K directions and perturbed points are in it unless chunk_size is 1.
"""

from __future__ import annotations

import functools
import statistics

import jax
import jax.numpy as jnp
import optax
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

import zojax
from benchmarks.functions import quadratic
from benchmarks.speed import median_ratio, take_turns, training
from benchmarks.study import COLOURS, Cell, Study, tabulate
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

    def two_point(sampler):
        return zojax.two_point(
            SMOOTHING, NUM_DIRECTIONS, key=0, sampler=sampler, chunk_size=chunk_size
        )

    def dap(**kwargs):
        return zojax.dap(
            SMOOTHING, NUM_DIRECTIONS, key=0, chunk_size=chunk_size, **kwargs
        )

    lazy_signs = perturbations.lazy(perturbations.rademacher())
    return {
        BASE: two_point(perturbations.sphere()),
        "Rademacher": two_point(perturbations.rademacher()),
        "two-stage DAP": dap(),
        "two-stage DAP, Rademacher": dap(
            sampler=perturbations.rademacher(), base=perturbations.rademacher()
        ),
        "DAP, Rademacher, guide replayed": dap(
            sampler=lazy_signs, base=lazy_signs, storage="replay"
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


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each dimension and chunk size; the estimators take turns."""

    def cell(dimension, chunk_size):
        def run(tick):
            x = jax.random.normal(jax.random.key(seed), (dimension,))
            steps = max(1, ENTRIES // dimension)
            opts = estimators(chunk_size)
            programs = {}
            for name, opt in opts.items():
                train = training(optax.chain(opt, optax.sgd(1e-4)), objective, steps)
                programs[name] = functools.partial(jax.jit(train), x)
            seconds = take_turns(programs, REPEATS)
            tick(0.8)
            return [
                {
                    "dimension": dimension,
                    "chunk_size": chunk_size or NUM_DIRECTIONS,
                    "estimator": name,
                    "milliseconds": 1e3 * statistics.median(times) / steps,
                    "ratio": median_ratio(times, seconds[BASE]),
                    "temporary_vectors": temporary_vectors(opts[name], dimension),
                }
                for name, times in seconds.items()
            ]

        return run

    return {
        f"{dimension}/chunk-{chunk_size or NUM_DIRECTIONS}": cell(dimension, chunk_size)
        for dimension in (FULL if full else QUICK)
        for chunk_size in (None, 1)
    }


def tables(frame: pd.DataFrame) -> list[Table]:
    cell = frame.set_index(["dimension", "estimator", "chunk_size"])
    chunks = (NUM_DIRECTIONS, 1)
    out = []
    for d in frame["dimension"].unique():
        rows = []
        for name in frame["estimator"].unique():
            row = [name]
            for chunk in chunks:
                found = cell.loc[(d, name, chunk)]
                row += [
                    f"{found['milliseconds']:.2f}",
                    f"{found['ratio']:.2f}",
                    f"{found['temporary_vectors']:.1f}",
                ]
            rows.append(row)
        columns = ["", *["ms", "ratio", "memory"] * len(chunks)]
        title = f"d = {d:,}: {NUM_DIRECTIONS} directions at once | one at a time"
        out.append(tabulate(title, columns, rows))
    out[-1].caption = (
        f"ms a step, K = {NUM_DIRECTIONS}; ratio to the sphere's; temporary memory in"
        f" vectors of size d. {jax.devices()[0].device_kind}, JAX {jax.__version__},"
        f" medians of {REPEATS}."
    )
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    staged = frame[frame["estimator"] == "two-stage DAP"]
    part = lambda chunk: staged[staged["chunk_size"] == chunk]
    whole, single = part(NUM_DIRECTIONS), part(1)
    return [
        "A two-stage DAP step takes"
        f" {whole['ratio'].min():.2f} to {whole['ratio'].max():.2f} times a sphere step"
        f" with all directions in memory, {single['ratio'].min():.2f} to"
        f" {single['ratio'].max():.2f} times one at a time; memory one at a time:"
        f" {single['temporary_vectors'].max():.1f} vectors of size d."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(9, 3.8), layout="constrained")
    axes = out.subplots(1, 2)
    for colour, (name, part) in zip(
        COLOURS, frame.groupby("estimator", sort=False), strict=False
    ):
        for style, (chunk, rows) in zip(
            ("--", "-"), part.groupby("chunk_size"), strict=False
        ):
            rows = rows.sort_values("dimension")
            label = f"{name}, {chunk} at a time"
            for axis, column in zip(
                axes, ("milliseconds", "temporary_vectors"), strict=True
            ):
                axis.plot(
                    rows["dimension"],
                    rows[column],
                    style,
                    marker="o",
                    color=colour,
                    label=label,
                )
    axes[0].set(ylabel="ms a step", yscale="log")
    axes[1].set(ylabel="memory, vectors of size d", ylim=(0, None))
    for axis in axes:
        axis.set(xscale="log", xlabel="d")
        axis.grid(alpha=0.25)
    out.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    return out


STUDY = Study(
    "DAP's projection in high dimension", cells, tables, findings, figure, timed=True
)
