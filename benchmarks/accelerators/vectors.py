"""Planned memory of a step by estimator: a vector, stacked layers, a sharded vector."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from jax.sharding import Mesh, NamedSharding, PartitionSpec
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
SHARDED = 2**30


def measure(topology: str, problem: Problem, estimator: str, tick: Tick) -> list[Row]:
    """A row for all directions at once, and one for one at a time."""
    chips = devices(topology)
    mesh = Mesh(np.array(chips), ("chips",))

    def place(x: Any) -> jax.ShapeDtypeStruct:
        """Vectors of params' size lie over the chips, anything else on each."""
        spread = problem.like.ndim == 1 and x.shape[-1:] == problem.like.shape
        spec = PartitionSpec(*[None] * (x.ndim - 1), "chips") if spread else None
        sharding = NamedSharding(mesh, spec or PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    forward = total_bytes(jax.jit(problem.f).lower(place(problem.like)).compile())
    rows = []
    for i, chunk_size in enumerate(CHUNKS):
        tick((i + 0.5) / (len(CHUNKS) + 0.5))
        start = time.monotonic()
        case = problem, estimator, NUM_DIRECTIONS, chunk_size
        row = {
            "topology": topology,
            "problem": problem.name,
            "estimator": estimator,
            "chunk": chunk_label(chunk_size),
            "forward": len(chips) * forward / num_bytes(problem.like),
            "jax": jax.__version__,
        }
        try:
            _, compiled = compile_step(*case, place)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            row["temporary"] = row["over_forward"] = math.inf
        else:
            found = planned(problem, compiled)
            row |= {name: len(chips) * copies for name, copies in found.items()}
            row["over_forward"] = total_bytes(compiled) / forward
            row |= operations(compiled)
        rows.append(row | {"seconds": time.monotonic() - start})
    return rows


def problems(number: int, full: bool) -> list[Problem]:
    """What is compiled for so many chips; several share one long vector."""
    if number == 1:
        return [*map(vector, FULL if full else QUICK), layers(WIDTH)]
    return [vector(SHARDED)]


def cells(topology: Sequence[str], full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each topology, problem and estimator."""
    del seed  # nothing is run
    return {
        f"{chip}/{problem.name}/{name}": functools.partial(measure, chip, problem, name)
        for chip in topology
        for problem in problems(len(devices(chip)), full)
        for name in ESTIMATORS
    }


def _shown(number: float, digits: int) -> str:
    """A number; what the compiler refused has none."""
    return f"{number:.{digits}f}" if math.isfinite(number) else "-"


def tables(frame: pd.DataFrame) -> list[Table]:
    """One for each topology and problem."""
    out = []
    for (chip, problem), part in frame.groupby(["topology", "problem"], sort=False):
        rows = [
            [
                f"{row.estimator}, {row.chunk}",
                *(_shown(x, 2) for x in (row.temporary, row.over_forward)),
                *(_shown(x, 0) for x in (row.loops, row.collectives, row.kernels)),
            ]
            for row in part.itertuples()
        ]
        columns = ["", "temporary", "/ forward", "loops", "collectives", "kernels"]
        out.append(tabulate(f"{chip}, {problem}, K = {NUM_DIRECTIONS}", columns, rows))
    out[-1].caption = (
        "Temporary memory in copies of a chip's params, all memory over the forward"
        " pass's, as the chip's compiler plans it (-: does not fit; JAX"
        f" {frame['jax'].iloc[-1]})."
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
    return Study("Estimators on accelerators", of_chips, tables, findings, figure)
