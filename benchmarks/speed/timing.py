"""How programs are timed: in turns, by medians of the ratios turn by turn."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from benchmarks.study import COLOURS, Row, Tick


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
    programs: Mapping[Any, Callable[[], Any]],
    repeats: int,
    tick: Tick = lambda share: None,
) -> dict[Any, list[float]]:
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


def timed_rows(
    programs: Mapping[Any, tuple[Callable[[], Any], int]],
    repeats: int,
    tick: Tick,
    bases: Mapping[str, Any],
) -> dict[Any, Row]:
    """A row for each program: milliseconds a step, ratios, and where it ran.

    Args:
      programs: (program, steps that it takes), by name.
      repeats: turns.
      tick: is called between them.
      bases: by column, the program whose time a step the others' are divided by.
    """
    turns = take_turns({n: run for n, (run, _) in programs.items()}, repeats, tick)
    a_step = {name: [t / programs[name][1] for t in ts] for name, ts in turns.items()}
    return {
        name: {"milliseconds": 1e3 * statistics.median(times)}
        | {column: median_ratio(times, a_step[base]) for column, base in bases.items()}
        | device_line()
        for name, times in a_step.items()
    }


def device_line() -> dict[str, str]:
    """Where a row was measured, as columns of it."""
    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


def where(frame: pd.DataFrame, repeats: int) -> str:
    """A sentence on how the rows were timed."""
    last = frame.iloc[-1]
    return f"{last['device']}, JAX {last['jax']}, medians of {repeats} turns."


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The p of seconds ~ sizes^p, fitted by least squares to the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def bars(frame: pd.DataFrame, x: str, y: str, hue: str) -> Figure:
    """Bars from left to right on a logarithmic axis, in the order of the rows."""
    height = 1.5 + 0.14 * frame[y].nunique() * (1 + frame[hue].nunique())
    out = Figure(figsize=(8, height), layout="constrained")
    hues = frame[hue].astype(str)
    colours = list(COLOURS[: hues.nunique()])
    axes = out.subplots()
    seaborn.barplot(frame, x=x, y=y, hue=hues, palette=colours, orient="h", ax=axes)
    axes.set(xscale="log", ylabel="", xlabel=x.replace("_", " "))
    axes.grid(axis="x", alpha=0.25)
    return out
