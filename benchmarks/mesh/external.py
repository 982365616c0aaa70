"""The same experiment with an external solver as a black box: scikit-fem by a callback.

The template for a simulator of one's own: a function of NumPy arrays that returns a
number, or inf where it has none, wrapped in ``jax.pure_callback``. It is called once
for each point that the estimator asks about, and the count is checked.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import skfem
from matplotlib.figure import Figure
from skfem.models.poisson import laplace, unit_load

from benchmarks.mesh import runs
from benchmarks.mesh.problem import (
    SMALLEST,
    Params,
    Problem,
    make_problem,
    rms_error,
    start,
    vertices,
)
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines

# Cells of the coarse and the fine mesh, K, iterations.
QUICK, FULL = (4, 8, 16, 40), (10, 20, 64, 100)
STEP_SIZE = 3.0


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


def error_field(points: np.ndarray, problem: Problem) -> np.ndarray:
    """Coarse minus fine solution at the vertices of the fine mesh f64[W].

    It is inf where a triangle is inverted, or nearly, or a point is NaN: there is no
    solution then.
    """
    triangles, inside = problem.coarse.triangles, ~problem.fine.is_boundary
    areas = np.linalg.det(points[triangles[:, 1:]] - points[triangles[:, :1]]) / 2
    if not areas.min() > SMALLEST / len(triangles):
        return np.full(len(inside), np.inf)
    u, basis = solve_with_scikit_fem(points, triangles)
    field = np.zeros(len(inside))
    field[inside] = basis.probes(problem.at.T) @ u - problem.reference
    return field


def black_box(problem: Problem) -> tuple[Callable[[Params], jax.Array], list[int]]:
    """Returns (objective, a list that gets an entry for each call of the solver)."""
    calls: list[int] = []

    def rms(points: np.ndarray) -> np.float64:
        # NumPy only: JAX must not be used inside a callback.
        calls.append(1)
        return np.sqrt(np.mean(error_field(np.asarray(points), problem) ** 2))

    def value_fn(params: Params) -> jax.Array:
        answer = jax.ShapeDtypeStruct((), jnp.float64)
        points = vertices(params, problem)
        return jax.pure_callback(rms, answer, points, vmap_method="sequential")

    return value_fn, calls


def compare(
    coarse: int, fine: int, num_directions: int, iterations: int, seed: int, tick: Tick
) -> list[Row]:
    """The same run with both solvers, a row a point of a curve."""
    problem, rows, before = make_problem(coarse, fine), [], jax.config.jax_enable_x64
    theirs, calls = black_box(problem)
    ours = functools.partial(rms_error, problem=problem)
    jax.config.update("jax_enable_x64", True)  # callbacks run in threads of their own
    try:
        for solver, value_fn in (("JAX", ours), ("scikit-fem", theirs)):
            setting = value_fn, problem, "orthogonal", num_directions, iterations
            run = runs.make_descent(*setting)
            seen, values, _ = run(start(problem), jax.random.key(seed), STEP_SIZE)
            curve = pd.DataFrame({"iteration": seen, "rms": values}).assign(
                solver=solver,
                cells=coarse,
                # The looks at the curve included.
                asked=iterations * runs.cost("orthogonal", num_directions) + len(seen),
                calls=len(calls),
            )
            rows += curve.to_dict("records")
            tick(len(rows) / (2 * len(seen)))
    finally:
        jax.config.update("jax_enable_x64", before)
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """One cell, since float64 is turned on for the whole process."""
    return {"both": functools.partial(compare, *(FULL if full else QUICK), seed)}


def gap(frame: pd.DataFrame) -> float:
    """The largest relative difference of the two curves."""
    curves = frame.pivot(index="iteration", columns="solver", values="rms")
    return float((curves["JAX"] / curves["scikit-fem"] - 1).abs().max())


def tables(frame: pd.DataFrame) -> Tables:
    """The two runs."""
    size, runs_of = frame["cells"].iloc[0], frame.groupby("solver", sort=False)
    columns = {"at first": ("rms", "first"), "at the end": ("rms", "last")}
    columns |= {name: (name, "last") for name in ("asked", "calls")}
    return {f"RMS error, {size} x {size} cells, two solvers": runs_of.agg(**columns)}


def findings(frame: pd.DataFrame) -> list[str]:
    """Whether curves and calls are as they should be."""
    theirs = frame[frame["solver"] == "scikit-fem"].iloc[-1]
    exactly = "exactly as" if theirs["calls"] == theirs["asked"] else "NOT as"
    return [
        f"The curves agree to {gap(frame):.0e} (relative). scikit-fem was called"
        f" {theirs['calls']:,.0f} times, {exactly} promised: K + 1 a step, and a look"
        " at each point of the curve."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """Both curves."""
    return lines(frame, x="iteration", y="rms", hue="solver", style="solver")


STUDY = Study("Mesh: scikit-fem as a black box", cells, tables, findings, figure)
