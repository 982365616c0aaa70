"""How programs are timed: in turns, by medians of the ratios turn by turn."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.study import Cell, Row, Study, Tables, Tick, bars


def training(
    opt: optax.GradientTransformationExtraArgs,
    f: Callable[[jax.Array], jax.Array],
    steps: int,
) -> Callable[[jax.Array], jax.Array]:
    """Whole steps in a scan: x -> x after the steps."""

    def step(carry, _):
        x, state = carry
        updates, state = opt.update(None, state, x, value_fn=f)
        return (optax.apply_updates(x, updates), state), None

    return lambda x: jax.lax.scan(step, (x, opt.init(x)), length=steps)[0][0]


def take_turns(
    programs: Mapping[str, Callable[[], Any]],
    repeats: int,
    tick: Tick = lambda share: None,
) -> dict[str, list[float]]:
    """Seconds of each program, turn by turn, after one call each to warm up.

    A program returns what has to be waited for, or None.
    """
    for program in programs.values():
        jax.block_until_ready(program())
    seconds = {name: [] for name in programs}
    for turn in range(repeats):
        tick((turn + 1) / (repeats + 1))
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """Median of the ratios turn by turn."""
    return statistics.median(t / b for t, b in zip(times, base, strict=True))


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The p of seconds ~ sizes^p, fitted by least squares to the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def device_line() -> dict[str, str]:
    """Where a row was measured, as columns of it."""
    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


Timed = tuple[Callable[[], Any], int]
"""A program, and the steps that a call of it takes."""


def compare(
    programs: Mapping[str, Timed], bases: Mapping[str, str], repeats: int, tick: Tick
) -> list[Row]:
    """A row for each program: its time a step, and over those of the bases.

    The bases are, by column, the programs that all are divided by there.
    """
    turns = take_turns({n: run for n, (run, _) in programs.items()}, repeats, tick)
    step = {n: [t / programs[n][1] for t in times] for n, times in turns.items()}
    return [
        {"program": name, "ms": 1e3 * statistics.median(times)}
        | {column: median_ratio(times, step[base]) for column, base in bases.items()}
        | device_line()
        for name, times in step.items()
    ]


def comparison(
    title: str,
    cells: Callable[[bool, int], dict[str, Cell]],
    findings: Callable[[pd.DataFrame], list[str]],
    columns: Sequence[str],
) -> Study:
    """The study of rows of ``compare``: a table a cell, bars of the last column."""

    def tables(frame: pd.DataFrame) -> Tables:
        where = "{device}, JAX {jax}".format(**frame.iloc[-1])
        return {
            f"{cell} ({where})": part.set_index("program")[list(columns)]
            for cell, part in frame.groupby("cell", sort=False)
        }

    def figure(frame: pd.DataFrame) -> Figure:
        axes = {"x": columns[-1], "y": "program", "hue": "cell"}
        return bars(frame, "x", **axes, height=5, aspect=1.6)

    return Study(title, cells, tables, findings, figure, timed=True)


def ratios(
    frame: pd.DataFrame, column: str, programs: Sequence[str], base: str
) -> list[str]:
    """A sentence on each program's ratios, by cell; none where it was left out."""
    out = []
    for program in programs:
        found = frame[frame["program"] == program][["cell", column]]
        said = [f"{ratio:.3g} ({cell})" for cell, ratio in found.values]
        out += [f"{program} over {base}: {', '.join(said)}."] if said else []
    return out
