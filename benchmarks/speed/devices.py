"""Directions spread over the devices that there are: time, and what travels.

K directions of a two-point step over 1, 2, 4 and 8 devices of one process; all-reduces
are counted in the compiled program.
"""

from __future__ import annotations

import functools
import re
import statistics

import jax
import numpy as np
import optax
import pandas as pd
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from rich.table import Table

import zojax
from benchmarks.functions import rosenbrock
from benchmarks.speed.timing import device_line, median_ratio, take_turns, training
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, plain, tabulate
from zojax.perturbations import rademacher

NUM_DIRECTIONS, SMOOTHING = 16, 1e-3
COUNTS = (1, 2, 4, 8)
QUICK, FULL = 100_000, 10_000_000
STEPS, REPEATS = 5, 7
SIMULATE = "XLA_FLAGS=--xla_force_host_platform_device_count=8"

# An instruction, not a mention; asynchronous ones are counted where they start.
ALL_REDUCE = re.compile(r" all-reduce(?:-start)?\(")


def compile_spread(dimension: int, number: int, seed: int):
    """(program of STEPS steps on so many devices, its all-reduces in a step)."""
    mesh = jax.make_mesh(
        (number,),
        ("queries",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:number],
    )
    opt = optax.chain(
        zojax.two_point(
            SMOOTHING,
            NUM_DIRECTIONS,
            key=seed,
            sampler=rademacher(),
            chunk_size=1,
            axis_name="queries",
        ),
        optax.sgd(1e-9),
    )
    x = np.random.default_rng(seed).normal(size=dimension).astype(np.float32)
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        run = jax.jit(training(opt, rosenbrock, STEPS)).lower(x).compile()
    # The body of the scan is in the text once, whatever the number of steps.
    return functools.partial(run, x), len(ALL_REDUCE.findall(run.as_text()))


def measure(dimension: int, seed: int, tick: Tick) -> list[Row]:
    """A row for each number of devices; they take turns."""
    counts = [n for n in COUNTS if n <= len(jax.devices())]
    compiled = {n: compile_spread(dimension, n, seed) for n in counts}
    turns = take_turns({n: run for n, (run, _) in compiled.items()}, REPEATS, tick)
    return [
        {
            "dimension": dimension,
            "devices": n,
            "available": len(jax.devices()),
            "milliseconds": 1e3 * statistics.median(times) / STEPS,
            "ratio": median_ratio(times, turns[1]),
            "all_reduces": compiled[n][1],
            **device_line(),
        }
        for n, times in turns.items()
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """One cell: all numbers of devices take turns."""
    d = FULL if full else QUICK
    return {str(d): functools.partial(measure, d, seed)}


def tables(frame: pd.DataFrame) -> list[Table]:
    rows = [
        [
            row["devices"],
            plain(row["milliseconds"]),
            plain(row["ratio"]),
            row["all_reduces"],
        ]
        for _, row in frame.iterrows()
    ]
    last = frame.iloc[-1]
    title = f"K = {NUM_DIRECTIONS} directions over n devices, d = {last['dimension']:,}"
    out = tabulate(title, ["n", "ms a step", "over n = 1", "all-reduces"], rows)
    out.caption = f"{last['device']}, JAX {last['jax']}, medians of {REPEATS} turns."
    return [out]


def findings(frame: pd.DataFrame) -> list[str]:
    last = frame.iloc[-1]
    number = last["available"]
    out = [f"There {'was 1 device' if number == 1 else f'were {number} devices'}."]
    if len(frame) > 1:
        out.append(
            f"Over {last['devices']} devices a step takes {plain(last['ratio'])} times"
            f" that on one, with {last['all_reduces']} all-reduces."
        )
    if last["device"] == "cpu":
        out.append(
            f"On a CPU devices can be simulated, with {SIMULATE}; they share its cores,"
            " so that the all-reduces can be counted there, but the gain not timed."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(5.5, 3.8), layout="constrained")
    axis = out.subplots()
    first = frame["milliseconds"].iloc[0]
    axis.plot(
        frame["devices"],
        frame["milliseconds"],
        marker="o",
        color=COLOURS[0],
        label="measured",
    )
    axis.plot(
        frame["devices"],
        first / frame["devices"],
        ":",
        color="grey",
        label="first / n",
    )
    axis.set(xscale="log", yscale="log", xlabel="devices", ylabel="ms a step")
    axis.set_xticks(list(frame["devices"]), list(frame["devices"]))
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    return out


STUDY = Study("Directions over devices", cells, tables, findings, figure, timed=True)
