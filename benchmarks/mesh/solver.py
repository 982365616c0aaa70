"""Is the solver right: against scikit-fem, and against the solution of the equation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.mesh import poisson
from benchmarks.mesh.external import solve_with_scikit_fem
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines

QUICK, FULL = (4, 8, 16, 32), (4, 8, 16, 32, 64)  # cells a side


def meshes(cells: int, key: jax.Array) -> tuple[poisson.Mesh, dict[str, jax.Array]]:
    """A mesh, and how its interior vertices may lie: f64[V, 2] by name.

    Where they are; moved smoothly, by up to a tenth of the square; each moved by up to
    a quarter of a cell.
    """
    mesh = poisson.unit_square(cells)
    x, y = mesh.points.T
    hill = 0.1 * jnp.sin(jnp.pi * x) * jnp.sin(jnp.pi * y)
    far = 0.25 / cells
    noise = jax.random.uniform(key, mesh.points.shape, jnp.float64, -far, far)
    shifts = {"uniform": 0, "bent": jnp.stack([hill, -hill], axis=1), "shaken": noise}
    inside = ~mesh.is_boundary[:, None]
    return mesh, {
        name: mesh.points + jnp.where(inside, shift, 0)
        for name, shift in shifts.items()
    }


def measure(cells: int, seed: int, tick: Tick) -> list[Row]:
    """A row for each mesh of a size."""
    del tick  # it takes a moment
    rows = []
    with jax.enable_x64(True):
        key = jax.random.fold_in(jax.random.key(seed), cells)
        mesh, moved = meshes(cells, key)
        solve = jax.jit(functools.partial(poisson.solve, mesh=mesh))
        for name, points in moved.items():
            ours, points = np.asarray(solve(points)), np.asarray(points)
            theirs, _ = solve_with_scikit_fem(points, mesh.triangles)
            error = (ours - poisson.exact_solution(points))[~mesh.is_boundary]
            row = {"mesh": name, "cells": cells, "rms": np.sqrt((error**2).mean())}
            rows.append(row | {"difference": np.abs(ours - theirs).max()})
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each size."""
    sizes = FULL if full else QUICK
    return {f"cells-{n}": functools.partial(measure, n, seed) for n in sizes}


def order(frame: pd.DataFrame, mesh: str) -> float:
    """The exponent p of error ~ h^p between the two finest meshes of a kind."""
    errors = frame[frame["mesh"] == mesh].set_index("cells")["rms"].sort_index()
    (coarser, finer), (error, less) = errors.index[-2:], errors.iloc[-2:]
    return float(np.log(error / less) / np.log(finer / coarser))


def tables(frame: pd.DataFrame) -> Tables:
    """RMS errors to the true solution; the largest differences to scikit-fem."""
    rows = frame.set_index(["mesh", "cells"]).sort_index()
    return {"The solver, at inner vertices": rows[["rms", "difference"]]}


def findings(frame: pd.DataFrame) -> list[str]:
    """The order, and the largest difference."""
    orders = ", ".join(
        f"{order(frame, name):.2f} ({name})" for name in frame["mesh"].unique()
    )
    return [
        f"The solver agrees with scikit-fem to {frame['difference'].max():.0e}; the"
        f" order of its error between the two finest meshes is {orders}."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """Errors by size."""
    return lines(frame, x="cells", y="rms", hue="mesh", log="xy")


STUDY = Study("Mesh: the solver", cells, tables, findings, figure)
