"""Time to draw one direction and reduce it to one number, by sampler.

The number is all that leaves the program, so that XLA may draw and add up in one pass:
what is timed is the noise, not memory.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.speed.timing import bars, timed_rows, where
from benchmarks.study import Cell, Row, Study, Tables, Tick, plain
from zojax import perturbations

QUICK, FULL = (1_000_000,), (1_000_000, 10_000_000)
REPEATS, ENTRIES = 9, 4_000_000
BASE = "zojax rademacher (packed)"

Draw = Callable[[jax.Array, jax.Array], jax.Array]  # (key, f[d] to be like) -> f[d]


class Source(NamedTuple):
    """A way to draw noise, its kind of key, and whether threefry is partitionable."""

    draw: Draw
    impl: str = "threefry2x32"
    partitionable: bool = True


def ours(sampler: Callable, num_directions: int = 1) -> Source:
    """A sampler of ours; its rows are samples."""
    return Source(lambda key, x: sampler(key, 0, num_directions, x))


def sources() -> dict[str, Source]:
    """What is timed, ours first."""
    p = perturbations
    normal = lambda key, x: jax.random.normal(key, x.shape)
    return {
        BASE: ours(p.rademacher()),
        "zojax lazy(rademacher)": ours(p.lazy(p.rademacher())),
        "zojax gaussian": ours(p.gaussian()),
        "zojax sphere": ours(p.sphere()),
        "zojax coordinate": ours(p.coordinate()),
        "zojax orthogonal": ours(p.orthogonal(), 8),
        "zojax simplex, K = 8": ours(p.simplex(), 8),
        "normal": Source(normal),
        "normal, not partitionable": Source(normal, partitionable=False),
        # They change their values under vmap: zojax takes threefry alone.
        "normal, rbg key": Source(normal, "rbg"),
        "normal, unsafe_rbg key": Source(normal, "unsafe_rbg"),
        "jax.random.rademacher": Source(
            lambda key, x: jax.random.rademacher(key, x.shape, x.dtype)
        ),
        "jax.random.bernoulli": Source(
            lambda key, x: jnp.where(jax.random.bernoulli(key, shape=x.shape), 1.0, -1)
        ),
    }


def program(
    source: Source, dimension: int, steps: int, seed: int
) -> Callable[[], jax.Array]:
    """Draws a direction for each of some keys, and adds everything up."""

    def run(x):
        key = jax.random.key(seed, impl=source.impl)
        draw = lambda n: jnp.sum(source.draw(jax.random.fold_in(key, n), x))
        body = lambda total, n: (total + draw(n), None)
        return jax.lax.scan(body, 0.0, jnp.arange(steps))[0]

    x = jnp.zeros(dimension)
    with jax.threefry_partitionable(source.partitionable):
        return functools.partial(jax.jit(run).lower(x).compile(), x)


def measure(dimension: int, seed: int, tick: Tick) -> list[Row]:
    """A row for each source; they take turns."""
    steps = max(1, ENTRIES // dimension)
    timed = {
        name: (program(source, dimension, steps, seed), steps)
        for name, source in sources().items()
    }
    rows = timed_rows(timed, REPEATS, tick, {"ratio": BASE})
    return [
        {"dimension": dimension, "source": name, **row}
        | {"ns_an_entry": 1e6 * row["milliseconds"] / dimension}
        for name, row in rows.items()
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each dimension."""
    sizes = FULL if full else QUICK
    return {str(d): functools.partial(measure, d, seed) for d in sizes}


def tables(frame: pd.DataFrame) -> Tables:
    """A nanosecond an entry is a millisecond a million entries."""
    return {
        f"One direction, d = {d:,}; ratio: over packed Rademacher": part.set_index(
            "source"
        )[["ns_an_entry", "ratio"]]
        for d, part in frame.groupby("dimension")
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """The fastest and the slowest beside packed signs."""
    out = [where(frame, REPEATS)]
    for d, part in frame.groupby("dimension"):
        rows = part.set_index("source")
        others = rows["ratio"].drop(BASE)
        fastest, slowest = others.idxmin(), others.idxmax()
        out.append(
            f"At d = {d:,} a packed sign takes {plain(rows['ns_an_entry'][BASE])} ns;"
            f" the others {plain(others[fastest])} ({fastest}) to"
            f" {plain(others[slowest])} ({slowest}) times that, a normal"
            f" {plain(others['zojax gaussian'])}."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    """A bar for each source."""
    return bars(frame, "ns_an_entry", "source", "dimension")


STUDY = Study("Time to draw noise", cells, tables, findings, figure, timed=True)
