"""What does a guide cost that points away from the gradient?"""

import functools

import jax
import jax.numpy as jnp
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.study import Cell, Row, Study, Tables, Tick, lines
from benchmarks.synthetic.dense import linear_problem
from benchmarks.synthetic.estimates import Method, measure
from zojax import perturbations

SQUARED_COSINES = (1.0, 0.75, 0.5, 0.25, 0.0)
NUM_DIRECTIONS = 16  # K
BASES = ("gaussian", "sphere", "fixed length")


def guided(squared_cosine: float, base: str) -> Method:
    """Aligned with a vector at a known angle to the gradient."""

    def rows(gradient):
        unit = gradient / jnp.linalg.norm(gradient)
        # A fixed vector is as good as any: the gradient is drawn afresh in each trial.
        other = jax.random.normal(jax.random.key(0), unit.shape, unit.dtype)
        other = other - jnp.vdot(other, unit) * unit
        other = other / jnp.linalg.norm(other)
        guide = jnp.sqrt(squared_cosine) * unit + jnp.sqrt(1 - squared_cosine) * other
        sampler = {"sphere": perturbations.sphere}.get(base, perturbations.gaussian)
        fixed_length = base == "fixed length"
        return perturbations.aligned(guide, sampler(), fixed_length=fixed_length)

    def total(d, k):
        """With an exact guide d - 1; what X adds along the rest of the gradient."""
        excess = {"gaussian": 2, "sphere": 2 / (d + 2), "fixed length": 0}[base]
        return (d - 1 + excess * (1 - squared_cosine)) / k

    return Method(base, rows, total=total)


def estimate(dimension: int, base: str, seed: int, tick: Tick) -> list[Row]:
    """Errors on sparse gradients (1/16 nonzero), where alignment has most to lose."""
    rows, problem = [], linear_problem(dimension, 1 / 16)
    for done, squared_cosine in enumerate(SQUARED_COSINES, 1):
        key = jax.random.fold_in(jax.random.key(seed), done)
        method = guided(squared_cosine, base)
        names = {"dimension": dimension, "base": base, "squared_cosine": squared_cosine}
        found = measure(problem, method, [NUM_DIRECTIONS], key)
        rows += [names | row for row in found]
        tick(done / len(SQUARED_COSINES))
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each dimension and base."""
    return {
        f"{d}/{base}": functools.partial(estimate, d, base, seed)
        for d in ((16, 64, 256) if full else (16, 64))
        for base in BASES
    }


def errors(frame: pd.DataFrame) -> pd.DataFrame:
    """On all entries, and on the nonzero ones."""
    return frame[frame["measure"].isin(("error", "tau_error"))]


def tables(frame: pd.DataFrame) -> Tables:
    """By cos² of guide and gradient: measured, its error, and in theory."""
    by = {"index": ["base", "measure"], "columns": "squared_cosine"}
    return {
        f"d = {d}, {NUM_DIRECTIONS} directions: error over |gradient|², {column}": (
            part.pivot_table(column, **by)
        )
        for d, part in errors(frame).groupby("dimension")
        for column in ("mean", "standard_error", "theory")
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """How the closed forms fared, and what a wrong guide costs."""
    checked = frame["z"].dropna()
    text = [
        f"{len(checked)} cells have a closed form: {(checked > 3).sum()} lie beyond 3"
        f" standard errors, the farthest at {checked.max():.1f}."
    ]
    part = frame[frame["base"] == "gaussian"]
    means = part.set_index(["dimension", "squared_cosine", "measure"])["mean"]
    means = means.sort_index()
    for d in sorted(part["dimension"].unique()):
        exact, wrong = means[d, 1.0], means[d, 0.0]
        text.append(
            f"d = {d}, gaussian base, exact against orthogonal guide: full error"
            f" {exact['error']:.3g} against {wrong['error']:.3g}, nonzero entries"
            f" {exact['tau_error']:.3g} against {wrong['tau_error']:.3g}."
        )
    return text


def figure(frame: pd.DataFrame) -> Figure:
    """A panel for each dimension."""
    axes = {"x": "squared_cosine", "y": "mean", "hue": "base", "style": "measure"}
    return lines(errors(frame), **axes, col="dimension")


STUDY = Study("A guide at an angle to the gradient", cells, tables, findings, figure)
