"""Programs of which one does the work of many: their time and planned bytes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import pandas as pd

from benchmarks.memory.programs import total_bytes
from benchmarks.speed.timing import compare
from benchmarks.study import Row, Study, Tables, Tick, bars

QUICK, FULL = 3, 15  # turns
COLUMNS = ["ms", "time", "tokens_per_second", "speed", "megabytes", "bytes"]


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
    first, *_ = programs
    timed = {name: (call, 1) for name, call in calls.items()}
    rows = compare(timed, {"time": first}, turns, tick)
    for row in rows:
        size = sizes[row["program"]]
        row |= {"megabytes": size / 1e6, "bytes": size / sizes[first]}
    return rows


def tables(frame: pd.DataFrame) -> Tables:
    found = frame.set_index(["setting", "program"])
    found["speed"] = 1 / found["time"]
    found["bytes"] = found["bytes"].map("{:.3f}".format)
    return {"Time, speed and bytes over those of the first": found.filter(COLUMNS)}


def study(title: str, rows: Callable[[int, Tick], list[Row]]) -> Study:
    """The study of programs that take turns, in one cell: (turns, tick) -> rows."""
    turns = lambda full: FULL if full else QUICK
    cells = lambda full, seed: {"turns": functools.partial(rows, turns(full))}
    figure = functools.partial(bars, x="time", y="setting", hue="program")
    return Study(title, cells, tables, lambda frame: [], figure, timed=True)
