"""What XLA plans for one step, in copies of params, by estimator, K and chunk size.

A step overwrites its params and state, as training does. Nothing is run: the figures
are those of the compiled program, the same each time on one machine and one JAX.
"""

from __future__ import annotations

import functools
import itertools

import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.memory.programs import (
    CHUNKS,
    ESTIMATORS,
    Problem,
    chunk_label,
    chunks,
    compile_step,
    layers,
    planned,
    vector,
)
from benchmarks.speed.timing import device_line
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, tabulate

DIRECTIONS = (1, 8, 32)
QUICK, FULL = (1_000_000,), (10_000, 100_000, 1_000_000, 10_000_000)
WHOLE, SINGLE = chunk_label(None), chunk_label(1)


def measure(problem: Problem, estimator: str, tick: Tick) -> list[Row]:
    """A row for each number of directions and chunk size."""
    cases = [
        (k, chunk)
        for k in DIRECTIONS
        for chunk in chunks(k)
        # Each of the two stages of DAP needs a direction.
        if k > 1 or not estimator.startswith("dap")
    ]
    rows = []
    for i, (k, chunk_size) in enumerate(cases):
        tick(i / len(cases))
        _, compiled = compile_step(problem, estimator, k, chunk_size)
        rows.append(
            {
                "problem": problem.name,
                "estimator": estimator,
                "num_directions": k,
                "chunk": chunk_label(chunk_size),
                **planned(problem, compiled),
                **device_line(),
            }
        )
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each problem and estimator."""
    del seed  # nothing is run
    problems = [*map(vector, FULL if full else QUICK), layers()]
    return {
        f"{problem.name}/{name}": functools.partial(measure, problem, name)
        for problem in problems
        for name in ESTIMATORS
    }


def tables(frame: pd.DataFrame) -> list[Table]:
    out = []
    directions = list(dict.fromkeys(frame["num_directions"]))
    for problem, part in frame.groupby("problem", sort=False):
        rows = []
        for name, chunk in itertools.product(
            part["estimator"].unique(), map(chunk_label, CHUNKS)
        ):
            found = part[(part["estimator"] == name) & (part["chunk"] == chunk)]
            if not len(found):
                continue
            by_k = found.set_index("num_directions")
            cell = lambda k, column, by_k=by_k: (
                f"{by_k.loc[k, column]:.2f}" if k in by_k.index else "-"
            )
            rows.append(
                [
                    f"{name}, {chunk}",
                    *(cell(k, "temporary") for k in directions),
                    f"{found['arguments'].max():.2f}",
                ]
            )
        columns = ["", *(f"K = {k}" for k in directions), "params, state"]
        title = f"{problem}: temporary memory, copies of params"
        out.append(tabulate(title, columns, rows))
    last = frame.iloc[-1]
    out[-1].caption = f"Planned by XLA; {last['device']}, JAX {last['jax']}."
    return out


def _span(values: pd.Series) -> str:
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low} to {high}"


def growth(frame: pd.DataFrame) -> float:
    """Copies that K adds one at a time; K = 1 needs no loop, and is left out."""
    looped = frame[(frame["chunk"] == SINGLE) & (frame["num_directions"] > 1)]
    spread = looped.groupby("problem")["temporary"].agg(lambda t: t.max() - t.min())
    return float(spread.max())


def findings(frame: pd.DataFrame) -> list[str]:
    out = []
    most = frame["num_directions"].max()
    for name, part in frame.groupby("estimator", sort=False):
        single = part[part["chunk"] == SINGLE]
        whole = part[(part["chunk"] == WHOLE) & (part["num_directions"] == most)]
        out.append(
            f"{name}: {_span(single['temporary'])} temporary copies of params one"
            f" direction at a time (K from 2 on adds {growth(part):.2f}),"
            f" {_span(whole['temporary'])} with K = {most} at once; params and state"
            f" {_span(part['arguments'])}."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    problems = list(frame.groupby("problem", sort=False))
    out = Figure(figsize=(4 * len(problems) + 1, 4.2), layout="constrained")
    axes = out.subplots(1, len(problems), squeeze=False, sharey=True)[0]
    styles = dict(
        zip(
            map(chunk_label, CHUNKS), (("--", "s"), (":", "^"), ("-", "o")), strict=True
        )
    )
    for axis, (problem, part) in zip(axes, problems, strict=True):
        for colour, (name, rows) in zip(
            COLOURS, part.groupby("estimator", sort=False), strict=False
        ):
            for chunk, found in rows.groupby("chunk", sort=False):
                style, marker = styles[chunk]
                axis.plot(
                    found["num_directions"],
                    found["temporary"].clip(lower=1e-2),  # a lazy step may need none
                    style,
                    marker=marker,
                    color=colour,
                    label=f"{name}, {chunk}",
                )
        axis.set(xscale="log", yscale="log", xlabel="K", title=problem)
        axis.grid(alpha=0.25)
    axes[0].set(ylabel="temporary memory, copies of params")
    out.legend(
        *axes[-1].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=7,
    )
    return out


STUDY = Study("Memory that XLA plans for a step", cells, tables, findings, figure)
