"""Directions spread over the devices that there are: time, and what travels.

K directions of a two-point step over 1, 2, 4 and 8 devices of one process; all-reduces
are counted in the compiled program.
"""

import functools
import re

import jax
import numpy as np
import optax
import pandas as pd
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matplotlib.figure import Figure

import zojax
from benchmarks.functions import rosenbrock
from benchmarks.speed.timing import timed_rows, training, where
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines, plain
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
    devices = jax.devices()[:number]
    axes = {"axis_names": ("queries",), "axis_types": (AxisType.Auto,)}
    mesh = jax.make_mesh((number,), **axes, devices=devices)
    estimator = zojax.two_point(
        SMOOTHING,
        NUM_DIRECTIONS,
        key=seed,
        sampler=rademacher(),
        chunk_size=1,
        axis_name="queries",
    )
    x = np.random.default_rng(seed).normal(size=dimension).astype(np.float32)
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        run = training(optax.chain(estimator, optax.sgd(1e-9)), rosenbrock, STEPS)
        run = jax.jit(run).lower(x).compile()
    # The body of the scan is in the text once, whatever the number of steps.
    return functools.partial(run, x), len(ALL_REDUCE.findall(run.as_text()))


def measure(dimension: int, seed: int, tick: Tick) -> list[Row]:
    """A row for each number of devices; they take turns."""
    available = len(jax.devices())
    compiled = {n: compile_spread(dimension, n, seed) for n in COUNTS if n <= available}
    timed = {n: (run, STEPS) for n, (run, _) in compiled.items()}
    rows = timed_rows(timed, REPEATS, tick, {"ratio": 1})
    return [
        {"devices": n, "available": available, "all_reduces": compiled[n][1], **row}
        for n, row in rows.items()
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """One cell: all numbers of devices take turns."""
    d = FULL if full else QUICK
    return {f"d = {d}": functools.partial(measure, d, seed)}


def tables(frame: pd.DataFrame) -> Tables:
    """By the number of devices; the ratio is to one."""
    columns = ["milliseconds", "ratio", "all_reduces"]
    title = f"K = {NUM_DIRECTIONS} directions over devices, {frame['cell'].iloc[0]}"
    return {title: frame.set_index("devices")[columns]}


def findings(frame: pd.DataFrame) -> list[str]:
    """The gain, where it can be timed."""
    last = frame.iloc[-1]
    out = [
        where(frame, REPEATS),
        f"Devices: {last['available']}. Over {last['devices']} a step takes"
        f" {plain(last['ratio'])} times that on one, with {last['all_reduces']}"
        " all-reduces.",
    ]
    if last["device"] == "cpu":
        out.append(
            f"On a CPU devices can be simulated, with {SIMULATE}; they share its cores,"
            " so that the all-reduces can be counted there, but the gain not timed."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    """Time by the number of devices."""
    return lines(frame, "xy", x="devices", y="milliseconds")


STUDY = Study("Directions over devices", cells, tables, findings, figure, timed=True)
