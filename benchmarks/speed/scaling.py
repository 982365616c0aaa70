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
from benchmarks.speed.timing import Timed, compare, exponent, training
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines
from zojax.perturbations import rademacher

SMOOTHING = 1e-3
DIRECTIONS_AGAINST_D, DIMENSION_AGAINST_K = 4, 1_000_000
QUICK = (10_000, 100_000, 1_000_000, 10_000_000)
FULL = (*QUICK, 100_000_000)
DIRECTIONS = (1, 2, 4, 8, 16, 32)
ENTRIES, REPEATS = 20_000_000, 7  # entries of noise that a program draws, at least


def program(dimension: int, num_directions: int, seed: int) -> Timed:
    """About equally long, whatever the sizes."""
    steps = max(1, ENTRIES // (dimension * num_directions))
    opt = zojax.two_point(
        SMOOTHING, num_directions, key=seed, sampler=rademacher(), chunk_size=1
    )
    run = jax.jit(training(optax.chain(opt, optax.sgd(1e-9)), quadratic, steps))
    x = jax.random.normal(jax.random.key(seed), (dimension,))
    return functools.partial(run, x), steps


def measure(sizes: dict[int, tuple[int, int]], seed: int, tick: Tick) -> list[Row]:
    """Steps of all sizes (d, K) in turns: an exponent compares them."""
    programs = {str(size): program(*dk, seed) for size, dk in sizes.items()}
    rows = compare(programs, {}, REPEATS, tick)
    return [{"size": size} | row for size, row in zip(sizes, rows, strict=True)]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for the dimension and one for the number of directions."""
    by_d = {d: (d, DIRECTIONS_AGAINST_D) for d in (FULL if full else QUICK)}
    by_k = {k: (DIMENSION_AGAINST_K, k) for k in DIRECTIONS}
    return {
        "d": functools.partial(measure, by_d, seed),
        "K": functools.partial(measure, by_k, seed),
    }


def tables(frame: pd.DataFrame) -> Tables:
    """Milliseconds a step."""
    return {
        f"ms a step by {name}": part.set_index("size")[["ms"]]
        for name, part in frame.groupby("cell", sort=False)
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """The exponents, over all sizes."""
    return [
        f"From {name} = {part['size'].min():,} to {part['size'].max():,} the time of a"
        f" step grows as {name}^{exponent(part['size'], part['ms']):.2f}."
        for name, part in frame.groupby("cell", sort=False)
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """Against d, and against K."""
    return lines(frame, "xy", x="size", y="ms", col="cell")


STUDY = Study(
    "Time of a step by d and by K", cells, tables, findings, figure, timed=True
)
