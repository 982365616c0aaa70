"""A finite-element simulator as a black box: a descent with and without faults.

The objective is that of the mesh task, solved by scikit-fem in other processes: where
shall the vertices lie, so that the error of the solution is least? A tenth of the
points have no solution and a twentieth never return.
"""

from __future__ import annotations

import functools
import multiprocessing
import time

import numpy as np
import optax
import pandas as pd
import pebble
from matplotlib.figure import Figure
from rich.table import Table

import zojax
from benchmarks.external import faults
from benchmarks.mesh.external import solve_with_scikit_fem
from benchmarks.mesh.problem import SMALLEST, Problem, make_problem
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, tabulate

# Cells of the coarse and the fine mesh, K, steps.
QUICK, FULL = (10, 20, 32, 50), (10, 20, 64, 200)
SMOOTHING, STEP_SIZE, LIMIT = 1e-3, 1e-3, 0.5
WORKERS = (1, 2)
FAULTS = ("none", "10% fail", "10% fail, 5% hang")


def rms(moved: np.ndarray, query_id: int, *, problem: Problem, suffers: str) -> float:
    """RMS error x 1000 of the solution on the mesh whose inner vertices moved."""
    fault = faults.fault_of(query_id)
    if suffers == FAULTS[2] or (suffers == FAULTS[1] and fault == "fails"):
        faults.suffer(query_id)
    points = np.array(problem.coarse.points, float)
    points[~problem.coarse.is_boundary] += moved
    triangles = problem.coarse.triangles
    sides = points[triangles[:, 1:]] - points[triangles[:, :1]]
    if not np.linalg.det(sides).min() / 2 > SMALLEST / len(triangles):
        raise faults.SolverError("a triangle is inverted")
    u, basis = solve_with_scikit_fem(points, triangles)
    difference = basis.probes(problem.at.T) @ u - problem.reference
    return 1e3 * float(np.sqrt((difference**2).sum() / len(problem.fine.points)))


def measure(suffers: str, workers: int, full: bool, tick: Tick) -> list[Row]:
    """A descent: a row for each step."""
    coarse, fine, num_directions, steps = FULL if full else QUICK
    problem = make_problem(coarse, fine)
    inner = int((~problem.coarse.is_boundary).sum())
    function = functools.partial(rms, problem=problem, suffers=suffers)
    estimator = zojax.zoar(
        SMOOTHING,
        num_directions,
        key=0,
        sampler=zojax.perturbations.rademacher(),
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.external.simulator"])
    rows, start = [], time.monotonic()

    def on_step(progress):
        tick(progress.step / (steps + 1))
        rows.append(
            {
                "faults": suffers,
                "workers": workers,
                "cells": coarse,
                "step": progress.step,
                "mean": float(np.nanmean(progress.values)),
                "best": progress.best_value,
                "evaluations": progress.num_evaluations,
                "failed": progress.num_failed,
                "timeouts": progress.num_timeouts,
                "seconds": time.monotonic() - start,
            }
        )

    with pebble.ProcessPool(workers, context=context) as pool:
        zojax.external.optimize(
            function,
            np.zeros((inner, 2)),
            estimator,
            optax.adam(STEP_SIZE),
            steps,
            executor=pool,
            timeout=LIMIT,
            on_step=on_step,
        )
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each number of workers, and each kind of faults."""
    del seed  # faults and directions are always the same
    cases = [(suffers, WORKERS[-1]) for suffers in FAULTS]
    cases += [(FAULTS[0], workers) for workers in WORKERS[:-1]]
    return {
        f"{suffers}/{workers}": functools.partial(measure, suffers, workers, full)
        for suffers, workers in cases
    }


def last_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The last step of each run."""
    return frame.groupby(["faults", "workers"], sort=False).tail(1)


def tables(frame: pd.DataFrame) -> list[Table]:
    """Where each run began and ended."""
    rows = []
    for row in last_rows(frame).itertuples():
        same = (frame["faults"] == row.faults) & (frame["workers"] == row.workers)
        rows.append(
            [
                f"{row.faults}, {row.workers} worker(s)",
                f"{frame[same]['mean'].iloc[0]:.4f}",
                f"{row.best:.4f}",
                row.evaluations,
                f"{row.failed} ({row.timeouts})",
                f"{row.seconds:.0f}",
            ]
        )
    columns = ["faults", "RMS x 1000\nfirst step", "best", "points", "failed\n(late)"]
    size = frame["cells"].iloc[0]
    title = f"scikit-fem, {size} x {size} cells, ZoAR"
    return [tabulate(title, [*columns, "seconds"], rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    """What faults cost."""
    ends = last_rows(frame).set_index(["faults", "workers"])
    clean, worst = (
        ends.loc[(suffers, WORKERS[-1])] for suffers in (FAULTS[0], FAULTS[-1])
    )
    alone = ends.loc[(FAULTS[0], 1)]
    first = float(frame["mean"].iloc[0])
    gain = (first - worst["best"]) / (first - clean["best"])
    return [
        f"With {worst['failed']:.0f} of {worst['evaluations']:.0f} points lost the"
        f" descent gains {gain:.2f} of what it gains without faults.",
        f"Two workers take {clean['seconds'] / alone['seconds']:.2f} of the time of"
        " one.",
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """RMS error against evaluations."""
    out = Figure(figsize=(5.5, 3.8), layout="constrained")
    axis = out.subplots()
    both = frame[frame["workers"] == WORKERS[-1]]
    for colour, (suffers, part) in zip(
        COLOURS, both.groupby("faults", sort=False), strict=False
    ):
        axis.plot(part["evaluations"], part["best"], color=colour, label=suffers)
    axis.set(xlabel="points asked", ylabel="best RMS error x 1000")
    axis.set_title("scikit-fem in other processes")
    axis.legend(title="faults", frameon=False)
    axis.grid(alpha=0.25)
    return out


STUDY = Study(
    "External: a simulator that fails", cells, tables, findings, figure, timed=True
)
