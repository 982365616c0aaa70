"""Time to draw one direction and reduce it to one number, by sampler.

The number is all that leaves the program, so that XLA may draw and add up in one pass:
what is timed is the noise, not memory.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.speed.timing import device_line, median_ratio, take_turns
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, plain, tabulate
from zojax import perturbations

QUICK, FULL = (1_000_000,), (1_000_000, 10_000_000)
REPEATS, ENTRIES = 9, 4_000_000
BASE = "zojax rademacher (packed)"
CAPTION_KEYS = "rbg keys change their values under vmap: zojax takes threefry alone."

Draw = Callable[[jax.Array, jax.Array], jax.Array]  # (key, f[d] to be like) -> f[d]


class Source(NamedTuple):
    """A way to draw noise, its kind of key, and whether threefry is partitionable."""

    draw: Draw
    impl: str = "threefry2x32"
    partitionable: bool = True


def ours(sampler: Callable, num_directions: int = 1) -> Source:
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
        body = lambda total, n: (
            total + jnp.sum(source.draw(jax.random.fold_in(key, n), x)),
            None,
        )
        return jax.lax.scan(body, 0.0, jnp.arange(steps))[0]

    setting = (
        contextlib.nullcontext()
        if source.partitionable
        else jax.threefry_partitionable(False)
    )
    x = jnp.zeros(dimension)
    with setting:
        compiled = jax.jit(run).lower(x).compile()
    return functools.partial(compiled, x)


def measure(dimension: int, seed: int, tick: Tick) -> list[Row]:
    """A row for each source; they take turns."""
    steps = max(1, ENTRIES // dimension)
    timed = {
        name: program(source, dimension, steps, seed)
        for name, source in sources().items()
    }
    turns = take_turns(timed, REPEATS, tick)
    return [
        {
            "dimension": dimension,
            "source": name,
            "ns_an_entry": 1e9 * statistics.median(times) / (steps * dimension),
            "ratio": median_ratio(times, turns[BASE]),
            **device_line(),
        }
        for name, times in turns.items()
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each dimension."""
    return {
        str(d): functools.partial(measure, d, seed) for d in (FULL if full else QUICK)
    }


def tables(frame: pd.DataFrame) -> list[Table]:
    out = []
    for d, part in frame.groupby("dimension", sort=False):
        rows = [
            [row["source"], plain(row["ns_an_entry"]), plain(row["ratio"])]
            for _, row in part.iterrows()
        ]
        # A nanosecond an entry is a millisecond a million entries.
        columns = ["", "ms a million entries", "over packed Rademacher"]
        out.append(tabulate(f"One direction, d = {d:,}", columns, rows))
    last = frame.iloc[-1]
    out[-1].caption = (
        f"{last['device']}, JAX {last['jax']}, medians of {REPEATS} turns. "
        + CAPTION_KEYS
    )
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    out = []
    for d, part in frame.groupby("dimension", sort=False):
        ratio = part.set_index("source")["ratio"]
        others = ratio.drop(BASE)
        fastest, slowest = others.idxmin(), others.idxmax()
        out.append(
            f"At d = {d:,} a packed sign takes"
            f" {plain(part.set_index('source')['ns_an_entry'][BASE])} ns; the others"
            f" {plain(others[fastest])} ({fastest}) to {plain(others[slowest])}"
            f" ({slowest}) times that, a normal {plain(ratio['zojax gaussian'])}."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(8, 4.5), layout="constrained")
    axis = out.subplots()
    names = list(dict.fromkeys(frame["source"]))[::-1]
    dimensions = list(dict.fromkeys(frame["dimension"]))
    width = 0.8 / len(dimensions)
    for i, (colour, d) in enumerate(zip(COLOURS, dimensions, strict=False)):
        part = frame[frame["dimension"] == d].set_index("source").loc[names]
        places = [j + (len(dimensions) / 2 - i - 0.5) * width for j in range(len(part))]
        axis.barh(
            places, part["ns_an_entry"], height=width, color=colour, label=f"d = {d:,}"
        )
    axis.set_yticks(range(len(names)), names)
    axis.set(xscale="log", xlabel="ns an entry")
    axis.grid(axis="x", alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    return out


STUDY = Study("Time to draw noise", cells, tables, findings, figure, timed=True)
