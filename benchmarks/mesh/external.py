"""The same experiment with an external solver as a black box: scikit-fem by a callback.

The template for a simulator of one's own: a function of NumPy arrays that returns a
number, or inf where it has none, wrapped in ``jax.pure_callback``. It is called once
for each point that the estimator asks about, and the count is checked.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import skfem
from matplotlib.figure import Figure
from rich.table import Table
from skfem.models.poisson import laplace, unit_load

import zojax
from benchmarks.mesh.problem import (
    MASK,
    SMALLEST,
    Params,
    Problem,
    make_problem,
    rms_error,
    start,
    vertices,
)
from benchmarks.mesh.runs import SMOOTHING, make_descent
from benchmarks.study import COLOURS, Cell, Row, Study, plain, tabulate
from zojax.perturbations import orthogonal, restrict

# Cells of the coarse and the fine mesh, K, iterations.
QUICK, FULL = (4, 8, 16, 40), (10, 20, 64, 100)
STEP_SIZE, NUM_POINTS = 3.0, 10
SOLVERS = ("JAX", "scikit-fem")


def solve_with_scikit_fem(
    points: np.ndarray, triangles: np.ndarray
) -> tuple[np.ndarray, skfem.Basis]:
    """The solution at the vertices f64[V], and the basis that interpolates it."""
    mesh = skfem.MeshTri(points.T.copy(), triangles.T.copy())
    basis = skfem.Basis(mesh, skfem.ElementTriP1())
    system = skfem.condense(
        laplace.assemble(basis), unit_load.assemble(basis), D=mesh.boundary_nodes()
    )
    return skfem.solve(*system), basis


def black_box(problem: Problem) -> tuple[Callable[[Params], jax.Array], list[int]]:
    """Returns (objective, a list that gets an entry for each call of the solver)."""
    calls: list[int] = []

    def rms(points: np.ndarray) -> np.float64:
        # NumPy only: JAX must not be used inside a callback.
        calls.append(1)
        points, triangles = np.asarray(points), problem.coarse.triangles
        sides = points[triangles[:, 1:]] - points[triangles[:, :1]]
        areas = np.linalg.det(sides) / 2
        # An inverted triangle, or nearly, or NaN: there is no solution.
        if not areas.min() > SMALLEST / len(triangles):
            return np.float64(np.inf)
        u, basis = solve_with_scikit_fem(points, triangles)
        difference = basis.probes(problem.at.T) @ u - problem.reference
        return np.sqrt((difference**2).sum() / len(problem.fine.points))

    def value_fn(params: Params) -> jax.Array:
        answer = jax.ShapeDtypeStruct((), jnp.float64)
        points = vertices(params, problem)
        return jax.pure_callback(rms, answer, points, vmap_method="sequential")

    return value_fn, calls


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Turns float64 on in all threads: callbacks run in threads of their own."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each solver."""
    coarse, fine, num_directions, iterations = FULL if full else QUICK

    def build(key):
        return zojax.two_point(
            SMOOTHING,
            num_directions,
            key=key,
            sampler=restrict(orthogonal(), MASK),
        )

    def cell(solver):
        def run(tick) -> list[Row]:
            problem = make_problem(coarse, fine)
            value_fn, calls = black_box(problem)
            if solver == "JAX":
                value_fn = lambda params: rms_error(params, problem)
            with float64():
                descend = make_descent(
                    value_fn, problem, build, optax.sgd, iterations, NUM_POINTS
                )
                before = time.perf_counter()
                found = descend(start(problem), jax.random.key(seed), STEP_SIZE, tick)
                jax.block_until_ready(found.params)
                seconds = time.perf_counter() - before
            asked = iterations * (num_directions + 1) + NUM_POINTS + 1
            return [
                {
                    "solver": solver,
                    "cells": coarse,
                    "iteration": n,
                    "rms": value,
                    "asked": asked,  # the looks at the curve included
                    "calls": None if solver == "JAX" else len(calls),
                    "seconds": seconds,
                }
                for n, value in zip(
                    found.iterations.tolist(), found.values.tolist(), strict=True
                )
            ]

        return run

    return {solver: cell(solver) for solver in SOLVERS}


def gap(frame: pd.DataFrame) -> float:
    """The largest relative difference of the two curves."""
    ours, theirs = (frame.loc[frame["solver"] == s, "rms"].to_numpy() for s in SOLVERS)
    return float(np.abs(ours / theirs - 1).max())


def tables(frame: pd.DataFrame) -> list[Table]:
    rows = []
    for solver, group in frame.groupby("solver", sort=False):
        last = group.iloc[-1]
        rows.append(
            [
                solver,
                *(f"{1e3 * group['rms'].iloc[i]:.5f}" for i in (0, -1)),
                f"{last['asked']:,}",
                "-" if solver == "JAX" else f"{last['calls']:,.0f}",
                plain(1e3 * last["seconds"] / last["asked"]),
            ]
        )
    columns = [
        "solver",
        "RMS x 1000\nat first",
        "at\nthe end",
        "points\nasked",
        "calls\ncounted",
        "ms a point,\ncompiling too",
    ]
    size = frame["cells"].iloc[0]
    title = f"Mesh of {size} x {size} cells, orthogonal directions, two solvers"
    return [tabulate(title, columns, rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    theirs = frame[frame["solver"] == "scikit-fem"].iloc[-1]
    exactly = "exactly as" if theirs["calls"] == theirs["asked"] else "NOT as"
    return [
        f"The curves agree to {gap(frame):.0e} (relative). scikit-fem was called"
        f" {theirs['calls']:,.0f} times, {exactly} promised: K + 1 a step, and a look"
        " at each point of the curve."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(5.5, 3.8), layout="constrained")
    axis = out.subplots()
    styles = ({"linewidth": 4, "alpha": 0.5}, {"marker": "o"})
    for colour, style, (solver, group) in zip(
        COLOURS, styles, frame.groupby("solver", sort=False), strict=False
    ):
        values = 1e3 * group["rms"]
        axis.plot(group["iteration"], values, color=colour, label=solver, **style)
    axis.set(xlabel="iteration", ylabel="RMS error x 1000", title="Two solvers")
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return out


STUDY = Study(
    "Mesh: scikit-fem as a black box", cells, tables, findings, figure, timed=True
)
