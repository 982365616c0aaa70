"""Curves with bands, meshes and fields of error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation

from benchmarks.mesh import poisson
from benchmarks.mesh.problem import Problem, start, vertices
from benchmarks.mesh.runs import EXACT, METHODS
from benchmarks.study import COLOURS

__all__ = ["STYLES", "band", "before_and_after", "error_field", "moved"]

AUTODIFF = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 1.8, "zorder": 9}
OTHERS = [colour for colour in COLOURS if colour != "#000000"]
STYLES: dict[str, dict[str, Any]] = {
    EXACT: AUTODIFF,
    **{
        name: {"color": colour, "linewidth": 1.8}
        for name, colour in zip(METHODS, OTHERS, strict=False)
    },
}


def band(
    axis: Axes, rows: pd.DataFrame, x: str, label: str, style: dict[str, Any]
) -> None:
    """A curve of RMS errors: the mean of the seeds, and their range around it."""
    values = 1e3 * rows.pivot_table(index=x, columns="seed", values="rms")
    axis.plot(values.index, values.mean(axis=1), label=label, **style)
    axis.fill_between(
        values.index,
        values.min(axis=1),
        values.max(axis=1),
        color=style["color"],
        alpha=0.15,
        linewidth=0,
    )


def moved(problem: Problem, text: str) -> np.ndarray:
    """All vertices f64[V, 2], from the interior ones as a row has them."""
    interior = np.array(text.split(), float).reshape(-1, 2)
    with jax.enable_x64(True):
        params = start(problem) | {"interior": jnp.asarray(interior)}
        return np.asarray(vertices(params, problem))


def error_field(problem: Problem, points: np.ndarray) -> np.ndarray:
    """Coarse minus fine solution at the fine mesh's vertices f64[W]."""
    mesh = problem.coarse
    with jax.enable_x64(True):
        points = jnp.asarray(points)
        u = poisson.solve(points, mesh)
        where, _ = poisson.locate(points, mesh, problem.at, problem.nearby)
        inner = poisson.interpolate(points, mesh, u, problem.at, where)
        inner = inner - problem.reference
    field = np.zeros(len(problem.fine.points))
    field[~problem.fine.is_boundary] = np.asarray(inner)
    return field


def before_and_after(
    figure: Figure, axes: Sequence[Axes], problem: Problem, row: pd.Series
) -> None:
    """The mesh over its field of error, at the start and as a row has it."""
    grid = Triangulation(*problem.fine.points.T, problem.fine.triangles)
    states = [problem.coarse.points, moved(problem, row["vertices"])]
    fields = [error_field(problem, points) for points in states]
    largest = 1e3 * max(abs(field).max() for field in fields)
    for axis, points, field, title in zip(
        axes, states, fields, ("before", "after"), strict=True
    ):
        shown = axis.tripcolor(
            grid,
            1e3 * field,
            shading="gouraud",
            cmap="RdBu_r",
            vmin=-largest,
            vmax=largest,
        )
        axis.triplot(*points.T, problem.coarse.triangles, color="black", linewidth=0.5)
        rms = 1e3 * np.sqrt(np.mean(field**2))
        axis.set_title(f"{title}: RMS error {rms:.4f}e-3", fontsize=10)
        axis.set(aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    bar = figure.colorbar(shown, ax=axes[-1], shrink=0.8)
    bar.set_label("coarse - fine solution, x 1000", fontsize=9)
