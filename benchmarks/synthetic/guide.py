"""What does a guide cost that points away from the gradient?"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.study import COLOURS, Cell, Study, plain, tabulate, with_error
from benchmarks.synthetic.dense import linear_problem
from benchmarks.synthetic.estimates import Method, measure
from zojax import perturbations

SQUARED_COSINES = (1.0, 0.75, 0.5, 0.25, 0.0)
NUM_DIRECTIONS = 16  # K


def _guided(squared_cosine: float, base: str) -> Method:
    """Aligned with a vector at a known angle to the gradient."""

    def rows(gradient):
        unit = gradient / jnp.linalg.norm(gradient)
        # A fixed vector is as good as any: the gradient is drawn afresh in each trial.
        other = jax.random.normal(jax.random.key(0), unit.shape, unit.dtype)
        other = other - jnp.vdot(other, unit) * unit
        other = other / jnp.linalg.norm(other)
        guide = jnp.sqrt(squared_cosine) * unit + jnp.sqrt(1 - squared_cosine) * other
        sampler = {"sphere": perturbations.sphere}.get(base, perturbations.gaussian)
        return perturbations.aligned(
            guide, sampler(), fixed_length=base == "fixed length"
        )

    def total(d, k):
        """With an exact guide d - 1; what X adds along the rest of the gradient."""
        excess = {"gaussian": 2, "sphere": 2 / (d + 2), "fixed length": 0}[base]
        return (d - 1 + excess * (1 - squared_cosine)) / k

    return Method(base, rows, total=total)


BASES = ("gaussian", "sphere", "fixed length")


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """Sparse gradients (1/16 nonzero), where alignment has most to lose."""
    dimensions = (16, 64, 256) if full else (16, 64)

    def cell(dimension, base):
        def run(tick):
            rows = []
            for done, squared_cosine in enumerate(SQUARED_COSINES, 1):
                key = jax.random.fold_in(jax.random.key(seed), done)
                problem = linear_problem(dimension, 1 / 16)
                method = _guided(squared_cosine, base)
                names = {
                    "dimension": dimension,
                    "base": base,
                    "squared_cosine": squared_cosine,
                }
                rows += [
                    names | row
                    for row in measure(problem, method, [NUM_DIRECTIONS], key)
                ]
                tick(done / len(SQUARED_COSINES))
            return rows

        return run

    return {f"{d}/{base}": cell(d, base) for d in dimensions for base in BASES}


def tables(frame: pd.DataFrame) -> list[Table]:
    out = []
    for d, part in frame.groupby("dimension"):
        cell = part.set_index(["base", "squared_cosine", "measure"])
        rows = []
        for base in BASES:
            for name, words in (("error", "all"), ("tau_error", "nonzero")):
                stats = [cell.loc[(base, c, name)] for c in SQUARED_COSINES]
                found = [with_error(s["mean"], s["standard_error"]) for s in stats]
                rows.append([f"{base}, {words}", *found])
                if name == "error":
                    rows.append(["  theory", *(plain(s["theory"]) for s in stats)])
        columns = ["base", *(f"cos² {c:g}" for c in SQUARED_COSINES)]
        title = f"d = {d}, {NUM_DIRECTIONS} directions: error over |gradient|²"
        out.append(tabulate(title, columns, rows))
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    mean = frame.set_index(["dimension", "base", "squared_cosine", "measure"])["mean"]
    checked = frame["z"].dropna()
    text = [
        f"{len(checked)} cells have a closed form: {(checked > 3).sum()} lie beyond 3"
        f" standard errors, the farthest at {checked.max():.1f}."
    ]
    for d in sorted(frame["dimension"].unique()):
        at = lambda c, name, d=d: mean[d, "gaussian", c, name]
        text.append(
            f"d = {d}, gaussian base, exact against orthogonal guide: full error"
            f" {at(1.0, 'error'):.3g} against {at(0.0, 'error'):.3g}, nonzero entries"
            f" {at(1.0, 'tau_error'):.3g} against {at(0.0, 'tau_error'):.3g}."
        )
    return text


def figure(frame: pd.DataFrame) -> Figure:
    dimensions = sorted(frame["dimension"].unique())
    out = Figure(figsize=(4 * len(dimensions), 3.8), layout="constrained")
    axes = out.subplots(1, len(dimensions), squeeze=False)[0]
    for axis, d in zip(axes, dimensions, strict=True):
        for colour, base in zip(COLOURS, BASES, strict=False):
            for style, name in (("-", "error"), ("--", "tau_error")):
                rows = frame[
                    (frame["dimension"] == d)
                    & (frame["base"] == base)
                    & (frame["measure"] == name)
                ].sort_values("squared_cosine")
                entries = "all" if name == "error" else "nonzero"
                axis.errorbar(
                    rows["squared_cosine"],
                    rows["mean"],
                    3 * rows["standard_error"],
                    linestyle=style,
                    marker="o",
                    markersize=3,
                    color=colour,
                    label=f"{base}, {entries} entries",
                )
        axis.set(
            title=f"d = {d}, K = {NUM_DIRECTIONS}", xlabel="cos² of guide and gradient"
        )
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("error / |gradient|², ± 3 standard errors")
    axes[-1].legend(frameon=False, fontsize=7)
    return out


STUDY = Study("A guide at an angle to the gradient", cells, tables, findings, figure)
