"""A finite-element simulator as a black box: a descent with and without faults.

The objective is that of the mesh task, solved by scikit-fem in other processes: where
shall the vertices lie, so that the error of the solution is least?
"""

import functools
import time

import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure

import zojax
from benchmarks.external import faults
from benchmarks.external.workers import processes
from benchmarks.mesh.external import error_field
from benchmarks.mesh.problem import Problem, make_problem
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines

# Cells of the coarse and the fine mesh, K, steps.
QUICK, FULL = (10, 20, 32, 50), (10, 20, 64, 200)
SMOOTHING, STEP_SIZE, LIMIT = 1e-3, 1e-3, 0.5
# (Faulty?, workers.)
CASES = {"no faults": (False, 2), "faults": (True, 2), "one worker": (False, 1)}


def rms(moved: np.ndarray, query_id: int, *, problem: Problem, faulty: bool) -> float:
    """RMS error x 1000 of the solution on the mesh whose inner vertices moved."""
    if faulty:
        faults.suffer(query_id)
    points = problem.coarse.points.copy()
    points[~problem.coarse.is_boundary] += moved
    found = 1e3 * np.sqrt(np.mean(error_field(points, problem) ** 2))
    if not np.isfinite(found):
        raise RuntimeError("a triangle is inverted")
    return float(found)


def measure(case: str, full: bool, tick: Tick) -> list[Row]:
    """A descent: a row for each step."""
    faulty, workers = CASES[case]
    coarse, fine, num_directions, steps = FULL if full else QUICK
    problem = make_problem(coarse, fine)
    signs = zojax.perturbations.rademacher()
    rows, start = [], time.monotonic()

    def on_step(progress):
        tick(progress.step / (steps + 1))
        row = {"case": case, "cells": coarse}
        row |= {"mean": np.nanmean(progress.values), "best": progress.best_value}
        row |= {"points": progress.num_evaluations, "lost": progress.num_failed}
        row |= {"late": progress.num_timeouts, "seconds": time.monotonic() - start}
        rows.append(row)

    with processes(workers, __name__) as pool:
        zojax.external.optimize(
            functools.partial(rms, problem=problem, faulty=faulty),
            np.zeros((int((~problem.coarse.is_boundary).sum()), 2)),
            zojax.zoar(SMOOTHING, num_directions, key=0, sampler=signs),
            optax.adam(STEP_SIZE),
            steps,
            executor=pool,
            timeout=LIMIT,
            on_step=on_step,
        )
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each case."""
    del seed  # faults and directions are always the same
    return {case: functools.partial(measure, case, full) for case in CASES}


def ends(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean of the first step, and what the last one has."""
    runs = frame.groupby("case", sort=False)
    last = runs[["best", "points", "lost", "late", "seconds"]].last()
    return last.assign(first=runs["mean"].first())


def tables(frame: pd.DataFrame) -> Tables:
    """Where each run began and ended."""
    size = frame["cells"].iloc[0]
    return {f"RMS error x 1000, scikit-fem, {size} x {size} cells, ZoAR": ends(frame)}


def findings(frame: pd.DataFrame) -> list[str]:
    """What faults cost, and what a second worker gains."""
    clean, faulty, alone = (ends(frame).loc[case] for case in CASES)
    gain = (clean["first"] - faulty["best"]) / (clean["first"] - clean["best"])
    share = clean["seconds"] / alone["seconds"]
    return [
        f"With {faulty['lost']:.0f} of {faulty['points']:.0f} points lost,"
        f" {faulty['late']:.0f} of them late, the descent gains {gain:.2f} of what it"
        " gains without faults.",
        f"Two workers take {share:.2f} of the time of one.",
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """RMS error against points asked."""
    return lines(frame, x="points", y="best", hue="case", style="case", marker=None)


STUDY = Study(
    "External: a simulator that fails", cells, tables, findings, figure, timed=True
)
