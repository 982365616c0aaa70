"""Is the solver right: against scikit-fem, and against the solution of the equation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.mesh import poisson
from benchmarks.mesh.external import solve_with_scikit_fem
from benchmarks.study import COLOURS, Cell, Row, Study, tabulate

QUICK, FULL = (4, 8, 16, 32), (4, 8, 16, 32, 64)  # cells a side
MESHES = ("uniform", "bent", "shaken")


def bent(mesh: poisson.Mesh) -> jax.Array:
    """Vertices moved smoothly, by up to a tenth of the square: f64[V, 2]."""
    x, y = mesh.points.T
    hill = 0.1 * jnp.sin(jnp.pi * x) * jnp.sin(jnp.pi * y)
    shift = jnp.stack([hill, -hill], axis=1)
    return mesh.points + jnp.where(mesh.is_boundary[:, None], 0, shift)


def shaken(mesh: poisson.Mesh, cells: int, key: jax.Array) -> jax.Array:
    """Every interior vertex moved by up to a quarter of a cell: f64[V, 2]."""
    shift = jax.random.uniform(
        key, mesh.points.shape, jnp.float64, -0.25 / cells, 0.25 / cells
    )
    return mesh.points + jnp.where(mesh.is_boundary[:, None], 0, shift)


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each size."""

    def cell(size):
        def run(tick) -> list[Row]:
            mesh, rows = poisson.unit_square(size), []
            with jax.enable_x64(True):
                key = jax.random.fold_in(jax.random.key(seed), size)
                solve = jax.jit(lambda points: poisson.solve(points, mesh))
                meshes = jnp.asarray(mesh.points), bent(mesh), shaken(mesh, size, key)
                for name, points in zip(MESHES, meshes, strict=True):
                    ours = np.asarray(solve(points))
                    points = np.asarray(points)
                    theirs, _ = solve_with_scikit_fem(points, mesh.triangles)
                    error = (ours - poisson.exact_solution(points))[~mesh.is_boundary]
                    rows.append(
                        {
                            "mesh": name,
                            "cells": size,
                            "rms": float(np.sqrt((error**2).mean())),
                            "difference": float(np.abs(ours - theirs).max()),
                        }
                    )
            return rows

        return run

    return {f"cells-{n}": cell(n) for n in (FULL if full else QUICK)}


def order(frame: pd.DataFrame, mesh: str) -> float:
    """The exponent p of error ~ h^p between the two finest meshes of a kind."""
    rows = frame[frame["mesh"] == mesh].sort_values("cells").iloc[-2:]
    (h, finer_h), (error, finer) = 1 / rows["cells"], rows["rms"]
    return float(np.log(error / finer) / np.log(h / finer_h))


def tables(frame: pd.DataFrame) -> list[Table]:
    rows = [
        [row.mesh, row.cells, f"{row.rms:.3e}", f"{row.difference:.0e}"]
        for row in frame.sort_values(["mesh", "cells"]).itertuples()
    ]
    columns = [
        "mesh",
        "cells a side",
        "RMS error to the true\nsolution, interior",
        "largest difference\nto scikit-fem",
    ]
    return [tabulate("The solver", columns, rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    orders = ", ".join(f"{order(frame, name):.2f} ({name})" for name in MESHES)
    return [
        f"The solver agrees with scikit-fem to {frame['difference'].max():.0e}; the"
        f" order of its error between the two finest meshes is {orders}."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(5.5, 3.8), layout="constrained")
    axis = out.subplots()
    for colour, (name, group) in zip(COLOURS, frame.groupby("mesh"), strict=False):
        group = group.sort_values("cells")
        axis.plot(group["cells"], group["rms"], marker="o", color=colour, label=name)
    sizes = np.array(sorted(frame["cells"].unique()))
    guide = frame["rms"].max() * (sizes[0] / sizes) ** 2
    axis.plot(sizes, guide, color="black", linestyle=":", label="second order")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="cells a side",
        ylabel="RMS error at vertices",
    )
    axis.set_xticks(sizes, map(str, sizes))
    axis.minorticks_off()
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return out


STUDY = Study("Mesh: the solver", cells, tables, findings, figure)
