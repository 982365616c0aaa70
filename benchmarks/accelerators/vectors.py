"""Planned memory of a step by estimator: a vector, stacked layers, a sharded vector."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
import seaborn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure

from benchmarks.accelerators.compiled import devices, operations
from benchmarks.memory.programs import (
    CHUNKS,
    ESTIMATORS,
    Problem,
    compile_step,
    layers,
    planned,
    vector,
)
from benchmarks.study import Cell, Row, Study, Tables, Tick

NUM_DIRECTIONS = 10
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

    rows = []
    for i, (chunk, chunk_size) in enumerate(CHUNKS.items()):
        tick(i / len(CHUNKS))
        row = {"topology": topology, "problem": problem.name, "estimator": estimator}
        row |= {"chunk": chunk, "jax": jax.__version__}
        case = problem, estimator, NUM_DIRECTIONS, chunk_size
        try:
            _, compiled = compile_step(*case, place)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            row["temporary"] = math.inf
        else:
            row["temporary"] = len(chips) * planned(problem, compiled)["temporary"]
            row |= operations(compiled)
        rows.append(row)
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


def tables(frame: pd.DataFrame) -> Tables:
    """Temporary copies of params, as the compiler plans them; inf: it does not fit."""
    return {
        f"{chip}, {problem}, K = {NUM_DIRECTIONS}: temporary copies of params": (
            part.pivot_table("temporary", "estimator", "chunk", sort=False)
        )
        for (chip, problem), part in frame.groupby(["topology", "problem"], sort=False)
    }


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
    found = frame.assign(copies=frame["temporary"].clip(lower=1e-2))  # some need none
    found["where"] = found["topology"] + ", " + found["problem"]
    columns = {"x": "copies", "y": "estimator", "hue": "chunk", "col": "where"}
    grid = seaborn.catplot(found, **columns, kind="strip", jitter=False, height=3.6)
    return grid.set(xscale="log").set_titles("{col_name}").figure


def study(topology: Sequence[str]) -> Study:
    """The study, for these topologies."""
    of_chips = functools.partial(cells, topology)
    return Study("Estimators on accelerators", of_chips, tables, findings, figure)
