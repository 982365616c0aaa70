"""Planned memory of a step on one chip, by estimator: a vector, and stacked layers."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import jax
import numpy as np
import pandas as pd
from jax.sharding import SingleDeviceSharding
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.accelerators.compiled import devices, operations
from benchmarks.memory.programs import (
    ESTIMATORS,
    Problem,
    chunk_label,
    compile_step,
    layers,
    num_bytes,
    planned,
    total_bytes,
    vector,
)
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, tabulate

NUM_DIRECTIONS = 10
CHUNKS = (None, 1)
QUICK, FULL = (10_000_000,), (10_000_000, 100_000_000)
WIDTH = 2048


def measure(topology: str, problem: Problem, estimator: str, tick: Tick) -> list[Row]:
    """A row for all directions at once, and one for one at a time."""
    placed = SingleDeviceSharding(devices(topology)[0])
    like = jax.ShapeDtypeStruct(problem.like.shape, problem.like.dtype, sharding=placed)
    forward = total_bytes(jax.jit(problem.f).lower(like).compile())
    rows = []
    for i, chunk_size in enumerate(CHUNKS):
        tick((i + 0.5) / (len(CHUNKS) + 0.5))
        start = time.monotonic()
        case = problem, estimator, NUM_DIRECTIONS, chunk_size
        _, compiled = compile_step(*case, placed)
        rows.append(
            {
                "topology": topology,
                "problem": problem.name,
                "estimator": estimator,
                "chunk": chunk_label(chunk_size),
                **planned(problem, compiled),
                "over_forward": total_bytes(compiled) / forward,
                "forward": forward / num_bytes(problem.like),
                **operations(compiled),
                "seconds": time.monotonic() - start,
                "jax": jax.__version__,
            }
        )
    return rows


def cells(topology: Sequence[str], full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each topology, problem and estimator."""
    del seed  # nothing is run
    problems = [*map(vector, FULL if full else QUICK), layers(WIDTH)]
    return {
        f"{chip}/{problem.name}/{name}": functools.partial(measure, chip, problem, name)
        for chip in topology
        for problem in problems
        for name in ESTIMATORS
    }


def tables(frame: pd.DataFrame) -> list[Table]:
    """One for each topology and problem."""
    out = []
    for (chip, problem), part in frame.groupby(["topology", "problem"], sort=False):
        rows = [
            [
                f"{row.estimator}, {row.chunk}",
                f"{row.temporary:.2f}",
                f"{row.over_forward:.2f}",
                row.loops,
                row.collectives,
            ]
            for row in part.itertuples()
        ]
        columns = ["", "temporary", "/ forward", "loops", "collectives"]
        out.append(tabulate(f"{chip}, {problem}, K = {NUM_DIRECTIONS}", columns, rows))
    out[-1].caption = (
        "Temporary memory in copies of params, all memory over the forward pass's, as"
        f" libtpu plans it (JAX {frame['jax'].iloc[-1]})."
    )
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    """The least and the most that each topology plans, by chunk."""
    out = []
    for (chip, chunk), part in frame.groupby(["topology", "chunk"], sort=False):
        part = part.sort_values("temporary")
        least, most = part.iloc[0], part.iloc[-1]
        out.append(
            f"{chip}, {chunk}: from {least['temporary']:.2f} temporary copies of params"
            f" ({least['estimator']}, {least['problem']}) to {most['temporary']:.2f}"
            f" ({most['estimator']}, {most['problem']})."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    """Temporary copies by estimator; a panel for each topology and problem."""
    panels = list(frame.groupby(["topology", "problem"], sort=False))
    out = Figure(figsize=(3.6 * len(panels) + 1.5, 3.6), layout="constrained")
    axes = out.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, ((chip, problem), part) in zip(axes, panels, strict=True):
        for colour, (chunk, rows) in zip(
            COLOURS, part.groupby("chunk", sort=False), strict=False
        ):
            copies = np.maximum(rows["temporary"], 1e-2)  # a step may need none
            axis.plot(copies, rows["estimator"], "o", color=colour, label=chunk)
        axis.set(xscale="log", title=f"{chip}, {problem}")
        axis.set_xlabel("temporary memory, copies of params")
        axis.grid(alpha=0.25)
    axes[0].invert_yaxis()
    axes[0].legend(frameon=False, fontsize=8)
    return out


def study(topology: Sequence[str]) -> Study:
    """The study, for these topologies."""
    of_chips = functools.partial(cells, topology)
    return Study(
        "Memory planned by the TPU compiler", of_chips, tables, findings, figure
    )
