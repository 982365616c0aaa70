"""Time to draw one direction and reduce it to one number, by sampler.

The number is all that leaves the program, so that XLA may draw and add up in one pass:
what is timed is the noise, not memory.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pandas as pd

from benchmarks.speed.timing import Timed, compare, comparison, ratios
from benchmarks.study import Cell, Row, Tick
from zojax import perturbations

QUICK, FULL = (1_000_000,), (1_000_000, 10_000_000)
REPEATS, ENTRIES = 9, 4_000_000
BASE, GAUSSIAN = "zojax rademacher (packed)", "zojax gaussian"
RADEMACHER, RBG = "jax.random.rademacher", "jax.random.normal, rbg key"
# (how to draw f[d] like x from a key, the kind of key); zojax takes threefry alone,
# since rbg keys change their values under vmap.
SOURCES: dict[str, tuple[Callable[[jax.Array, jax.Array], jax.Array], str]] = {
    BASE: (lambda key, x: perturbations.rademacher()(key, 0, 1, x), "threefry2x32"),
    GAUSSIAN: (lambda key, x: perturbations.gaussian()(key, 0, 1, x), "threefry2x32"),
    RADEMACHER: (
        lambda key, x: jax.random.rademacher(key, x.shape, x.dtype),
        "threefry2x32",
    ),
    RBG: (lambda key, x: jax.random.normal(key, x.shape), "rbg"),
}


def program(name: str, dimension: int, seed: int) -> Timed:
    """Draws a direction for each of some keys, and adds everything up."""
    draw, kind = SOURCES[name]
    steps = max(1, ENTRIES // dimension)

    def run(x):
        key = jax.random.key(seed, impl=kind)

        def add(total, n):
            return total + jnp.sum(draw(jax.random.fold_in(key, n), x)), None

        return jax.lax.scan(add, 0.0, jnp.arange(steps))[0]

    return functools.partial(jax.jit(run), jnp.zeros(dimension)), steps


def measure(dimension: int, seed: int, tick: Tick) -> list[Row]:
    """A nanosecond an entry is a millisecond a million entries."""
    programs = {name: program(name, dimension, seed) for name in SOURCES}
    rows = compare(programs, {"over_packed": BASE}, REPEATS, tick)
    a_million = 1e6 / dimension
    return [{"ms_a_million": r["ms"] * a_million} | r for r in rows]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each dimension."""
    return {
        f"d = {d:,}": functools.partial(measure, d, seed)
        for d in (FULL if full else QUICK)
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """The others over packed signs."""
    names = GAUSSIAN, RADEMACHER, RBG
    return ratios(frame, "over_packed", names, "packed signs")


COLUMNS = ("over_packed", "ms_a_million")
STUDY = comparison("Time to draw noise", cells, findings, COLUMNS)
