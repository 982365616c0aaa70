"""How the time of a step grows with d and with K, one direction at a time.

The objective is the quadratic, as cheap as can be, so that the noise and the sums over
it are most of the time.
"""

from __future__ import annotations

import functools
import statistics

import jax
import optax
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

import zojax
from benchmarks.functions import quadratic
from benchmarks.speed.timing import device_line, exponent, take_turns, training
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, plain, tabulate
from zojax.perturbations import rademacher

SMOOTHING = 1e-3
DIRECTIONS_AGAINST_D, DIMENSION_AGAINST_K = 4, 1_000_000
QUICK = (10_000, 100_000, 1_000_000, 10_000_000)
FULL = (*QUICK, 100_000_000)
DIRECTIONS = (1, 2, 4, 8, 16, 32)
ENTRIES, REPEATS = 20_000_000, 7  # entries of noise that a program draws, at least
SIZES = {"d": "dimension", "K": "num_directions"}


def program(dimension: int, num_directions: int, seed: int):
    """(program, steps): about equally long, whatever the sizes."""
    steps = max(1, ENTRIES // (dimension * num_directions))
    opt = zojax.two_point(
        SMOOTHING, num_directions, key=seed, sampler=rademacher(), chunk_size=1
    )
    run = jax.jit(training(optax.chain(opt, optax.sgd(1e-9)), quadratic, steps))
    x = jax.random.normal(jax.random.key(seed), (dimension,))
    return functools.partial(run, x), steps


def measure(
    against: str, sizes: list[tuple[int, int]], seed: int, tick: Tick
) -> list[Row]:
    """Times steps of all sizes (d, K) in turns: an exponent compares them."""
    timed = {size: program(*size, seed) for size in sizes}
    turns = take_turns({size: run for size, (run, _) in timed.items()}, REPEATS, tick)
    return [
        {
            "against": against,
            "dimension": d,
            "num_directions": k,
            "milliseconds": 1e3 * statistics.median(times) / timed[d, k][1],
            **device_line(),
        }
        for (d, k), times in turns.items()
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for the dimension and one for the number of directions."""
    sizes = {
        "d": [(d, DIRECTIONS_AGAINST_D) for d in (FULL if full else QUICK)],
        "K": [(DIMENSION_AGAINST_K, k) for k in DIRECTIONS],
    }
    return {
        name: functools.partial(measure, name, found, seed)
        for name, found in sizes.items()
    }


def tables(frame: pd.DataFrame) -> list[Table]:
    rows = [
        [
            f"against {row['against']}",
            f"{row['dimension']:,}",
            row["num_directions"],
            plain(row["milliseconds"]),
            plain(1e6 * row["milliseconds"] / row["dimension"] / row["num_directions"]),
        ]
        for _, row in frame.iterrows()
    ]
    columns = ["", "d", "K", "ms a step", "ns / (d K)"]
    out = tabulate("Rademacher, chunk_size=1, sum of squares", columns, rows)
    last = frame.iloc[-1]
    out.caption = f"{last['device']}, JAX {last['jax']}, medians of {REPEATS} turns."
    return [out]


def findings(frame: pd.DataFrame) -> list[str]:
    out = []
    for against, part in frame.groupby("against", sort=False):
        sizes, times = part[SIZES[against]], part["milliseconds"]
        if len(part) < 2:
            continue
        power = exponent(sizes, times)
        last = exponent(sizes.iloc[-2:], times.iloc[-2:])
        out.append(
            f"From {against} = {sizes.iloc[0]:,} to {sizes.iloc[-1]:,} the time of a"
            f" step grows as {against}^{power:.2f}; between the last two as"
            f" {against}^{last:.2f}."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(9, 3.8), layout="constrained")
    groups = list(frame.groupby("against", sort=False))
    axes = out.subplots(1, len(groups), squeeze=False)[0]
    for axis, colour, (against, part) in zip(axes, COLOURS, groups, strict=False):
        sizes, times = part[SIZES[against]], part["milliseconds"]
        axis.plot(sizes, times, marker="o", color=colour, label="measured")
        line = times.iloc[-1] * sizes / sizes.iloc[-1]
        axis.plot(sizes, line, ":", color="grey", label=f"proportional to {against}")
        axis.set(xscale="log", yscale="log", xlabel=against, ylabel="ms a step")
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
    return out


STUDY = Study(
    "Time of a step by d and by K", cells, tables, findings, figure, timed=True
)
