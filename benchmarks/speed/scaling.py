"""How the time of a step grows with d and with K, one direction at a time.

The objective is the quadratic, as cheap as can be, so that the noise and the sums over
it are most of the time.
"""

import functools

import jax
import optax
import pandas as pd
from matplotlib.figure import Figure

import zojax
from benchmarks.functions import quadratic
from benchmarks.speed.timing import exponent, timed_rows, training, where
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines
from zojax.perturbations import rademacher

SMOOTHING = 1e-3
DIRECTIONS_AGAINST_D, DIMENSION_AGAINST_K = 4, 1_000_000
QUICK = (10_000, 100_000, 1_000_000, 10_000_000)
FULL = (*QUICK, 100_000_000)
DIRECTIONS = (1, 2, 4, 8, 16, 32)
ENTRIES, REPEATS = 20_000_000, 7  # entries of noise that a program draws, at least


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
    rows = timed_rows({s: program(*s, seed) for s in sizes}, REPEATS, tick, {})
    return [
        {"against": against, "d": d, "K": k, "size": d if against == "d" else k, **row}
        for (d, k), row in rows.items()
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for the dimension and one for the number of directions."""
    sizes = {
        "d": [(d, DIRECTIONS_AGAINST_D) for d in (FULL if full else QUICK)],
        "K": [(DIMENSION_AGAINST_K, k) for k in DIRECTIONS],
    }
    return {
        name: functools.partial(measure, name, of, seed) for name, of in sizes.items()
    }


def tables(frame: pd.DataFrame) -> Tables:
    """Milliseconds a step, and nanoseconds for each of the d K entries."""
    found = frame.set_index(["against", "d", "K"])[["milliseconds"]]
    entry = 1e6 * frame["milliseconds"] / frame["d"] / frame["K"]
    title = "A step: Rademacher, chunk_size=1, sum of squares"
    return {title: found.assign(ns_an_entry=entry.to_numpy())}


def findings(frame: pd.DataFrame) -> list[str]:
    """Exponents over all sizes, and over the last two."""
    out = [where(frame, REPEATS)]
    for against, part in frame.groupby("against", sort=False):
        sizes, times = part["size"], part["milliseconds"]
        out.append(
            f"From {against} = {sizes.iloc[0]:,} to {sizes.iloc[-1]:,} the time of a"
            f" step grows as {against}^{exponent(sizes, times):.2f}; between the last"
            f" two as {against}^{exponent(sizes.iloc[-2:], times.iloc[-2:]):.2f}."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    """A panel for d, one for K."""
    return lines(frame, "xy", x="size", y="milliseconds", col="against")


STUDY = Study(
    "Time of a step by d and by K", cells, tables, findings, figure, timed=True
)
