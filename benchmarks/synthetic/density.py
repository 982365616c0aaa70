"""From sparse to dense gradients: where does the advantage of alignment vanish?"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.study import COLOURS, Cell, Study, tabulate
from benchmarks.synthetic.estimates import METHODS, Problem, measure, relative

DENSITIES = (1 / 16, 1 / 4, 1 / 2, 1.0)
NAMES = (
    "sphere",
    "rademacher",
    "dap-gaussian",
    "dap-refined",
    "dap-average",
)


def linear_problem(dimension: int, density: float) -> Problem:
    """f = g . x, with a share of the entries of g drawn from N(0, 1), the others 0."""
    count = round(density * dimension)

    def draw(key):
        g = jax.random.normal(key, (dimension,), float)
        return jnp.zeros(dimension), jnp.where(jnp.arange(dimension) < count, g, 0)

    return Problem(draw, jnp.dot, 1e-12)


SHORT = {
    "rademacher": "Rademacher",
    "dap-gaussian": "exact DAP",
    "dap-refined": "refined DAP",
    "dap-average": "averaged DAP",
}


def cells(full: bool, seed: int) -> dict[str, Cell]:
    dimensions = (16, 64, 256) if full else (16, 64)

    def cell(dimension, name):
        def run(tick):
            rows, sizes = [], (dimension, 4 * dimension)
            for done, density in enumerate(DENSITIES, 1):
                key = jax.random.fold_in(jax.random.key(seed), done)
                problem = linear_problem(dimension, density)
                found = measure(problem, METHODS[name], sizes, key)
                names = {"dimension": dimension, "density": density, "method": name}
                rows += [names | row for row in found]
                tick(done / len(DENSITIES))
            return rows

        return run

    return {f"{d}/{name}": cell(d, name) for d in dimensions for name in NAMES}


GROUP = ["dimension", "density", "num_directions"]


def tables(frame: pd.DataFrame) -> list[Table]:
    frame = relative(frame, ["method"], GROUP)
    out = []
    for name, words in (("tau_error", "nonzero entries"), ("error", "all entries")):
        rows = []
        part = frame[frame["measure"] == name]
        for group, found in part.groupby(GROUP):
            ratio = found.set_index("method")["ratio"]
            d, density, k = group
            rows.append(
                [
                    f"d = {d}, {density:.0%}, K = {k}",
                    *(f"{ratio[m]:.2f}" for m in SHORT),
                ]
            )
        columns = ["nonzero entries", *SHORT.values()]
        out.append(tabulate(f"Error on {words} over the sphere's", columns, rows))
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    frame = relative(frame, ["method"], GROUP)
    part = frame[frame["measure"] == "tau_error"]
    text = []
    for method in ("dap-gaussian", "dap-average"):
        span = part[part["method"] == method].groupby("density")["ratio"]
        found = ", ".join(
            f"{density:.0%} nonzero {low:.2f} to {high:.2f}"
            for density, low, high in zip(
                span.min().index, span.min(), span.max(), strict=True
            )
        )
        text.append(
            f"{METHODS[method].label}, nonzero entries, over the sphere: {found}."
        )
    return text


def figure(frame: pd.DataFrame) -> Figure:
    frame = relative(frame, ["method"], GROUP)
    frame = frame[frame["measure"] == "tau_error"]
    dimensions = sorted(frame["dimension"].unique())
    out = Figure(figsize=(4.5 * len(dimensions), 4.2), layout="constrained")
    axes = out.subplots(1, len(dimensions), sharey=True, squeeze=False)[0]
    for axis, d in zip(axes, dimensions, strict=True):
        for style, multiple in (("-", 4), ("--", 1)):
            for colour, method in zip(COLOURS, NAMES[1:], strict=False):
                rows = frame[
                    (frame["dimension"] == d)
                    & (frame["num_directions"] == multiple * d)
                    & (frame["method"] == method)
                ].sort_values("density")
                axis.plot(
                    100 * rows["density"],
                    rows["ratio"],
                    style,
                    marker="o",
                    color=colour,
                    label=f"{METHODS[method].label}, K = {multiple}d",
                )
        axis.axhline(1, color="black", linewidth=1, linestyle=":")
        axis.set(title=f"d = {d}", xlabel="nonzero entries of the gradient, %")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("error on the nonzero entries,\nover the sphere's")
    out.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=7,
    )
    return out


STUDY = Study("Sparse and dense gradients", cells, tables, findings, figure)
