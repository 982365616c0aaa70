"""Programs of which one does the work of many: their time and planned bytes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pandas as pd

from benchmarks.memory.programs import total_bytes
from benchmarks.speed.timing import device_line, median_ratio, take_turns
from benchmarks.study import Row, Study, Tables, Tick, bars

QUICK, FULL = 3, 15  # turns
COLUMNS = ["milliseconds", "time", "tokens_per_second", "speed", "megabytes", "bytes"]


def measure(
    programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]],
    turns: int,
    tick: Tick,
) -> list[Row]:
    """A row for each function, given with its arguments; ratios are to the first."""
    calls, sizes = {}, {}
    for name, (run, args) in programs.items():
        program = jax.jit(run).lower(*args).compile()
        calls[name] = functools.partial(program, *args)
        sizes[name] = total_bytes(program)
    seconds, first = take_turns(calls, turns, tick), next(iter(programs))
    return [
        {
            "program": name,
            "milliseconds": 1e3 * float(np.median(own)),
            "time": median_ratio(own, seconds[first]),
            "megabytes": sizes[name] / 1e6,
            "bytes": sizes[name] / sizes[first],
            **device_line(),
        }
        for name, own in seconds.items()
    ]


def tables(frame: pd.DataFrame) -> Tables:
    found = frame.set_index(["setting", "program"])
    found["speed"] = 1 / found["time"]
    found["bytes"] = found["bytes"].map("{:.3f}".format)
    return {"Time, speed and bytes over those of the first": found.filter(COLUMNS)}


def study(title: str, rows: Callable[[int, Tick], list[Row]]) -> Study:
    """The study of programs that take turns, in one cell: (turns, tick) -> rows."""
    cell = lambda full: functools.partial(rows, FULL if full else QUICK)
    figure = functools.partial(bars, x="time", y="setting", hue="program")
    cells = lambda full, seed: {"turns": cell(full)}
    return Study(title, cells, tables, lambda frame: [], figure, timed=True)
