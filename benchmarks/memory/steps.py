"""What XLA plans for one step, in copies of params, by estimator, K and chunk size.

A step overwrites its params and state, as training does. Nothing is run: the figures
are those of the compiled program, the same each time on one machine and one JAX.
"""

import functools

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.memory.programs import (
    CHUNKS,
    ESTIMATORS,
    Problem,
    compile_step,
    layers,
    planned,
    vector,
)
from benchmarks.speed.timing import device_line
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines

DIRECTIONS = (1, 8, 32)
QUICK, FULL = (1_000_000,), (10_000, 100_000, 1_000_000, 10_000_000)


def measure(problem: Problem, estimator: str, tick: Tick) -> list[Row]:
    """A row for each number of directions and chunk size."""
    cases = [
        (k, chunk)
        for k in DIRECTIONS
        for chunk in CHUNKS
        # Each of the two stages of DAP needs a direction.
        if k > 1 or not estimator.startswith("dap")
    ]
    rows = []
    for i, (k, chunk) in enumerate(cases):
        tick(i / len(cases))
        _, compiled = compile_step(problem, estimator, k, CHUNKS[chunk])
        names = {"problem": problem.name, "estimator": estimator, "num_directions": k}
        row = names | {"chunk": chunk} | planned(problem, compiled) | device_line()
        rows.append(row)
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each problem and estimator."""
    problems = [*map(vector, FULL if full else QUICK), layers()]
    return {
        f"{problem.name}/{name}": functools.partial(measure, problem, name)
        for problem in problems
        for name in ESTIMATORS
    }


def tables(frame: pd.DataFrame) -> Tables:
    """Temporary memory by K, beside params and state."""
    index, out = ["estimator", "chunk"], {}
    for problem, part in frame.groupby("problem", sort=False):
        shown = part.assign(K="K = " + part["num_directions"].astype(str)).pivot_table(
            index=index, columns="K", values="temporary", sort=False
        )
        shown["params, state"] = part.groupby(index)["arguments"].max()
        out[f"{problem}: temporary memory, copies of params"] = shown
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    """What more directions cost one at a time; K = 1 needs no loop, and is left out."""
    looped = frame.query("chunk == '1 at a time' and num_directions > 1")
    copies = looped.groupby(["estimator", "problem"], sort=False)["temporary"]
    growth = (copies.max() - copies.min()).groupby("estimator", sort=False).max()
    last = frame.iloc[-1]
    return [
        f"{name}: K from 2 on adds {copies:.2f} copies of params one at a time."
        for name, copies in growth.items()
    ] + [f"Planned by XLA; {last['device']}, JAX {last['jax']}."]


def figure(frame: pd.DataFrame) -> Figure:
    """Temporary memory against K."""
    # A lazy step may need none.
    shown = frame.assign(copies=frame["temporary"].clip(lower=1e-2))
    columns = {"x": "num_directions", "y": "copies", "hue": "estimator"}
    return lines(shown, **columns, style="chunk", col="problem", log="xy")


STUDY = Study("Memory that XLA plans for a step", cells, tables, findings, figure)
