"""From sparse to dense gradients: where does the advantage of alignment vanish?"""

import functools

import jax
import jax.numpy as jnp
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.study import Cell, Row, Study, Tables, Tick, lines
from benchmarks.synthetic.estimates import METHODS, Problem, measure, relative

DENSITIES = (1 / 16, 1 / 4, 1 / 2, 1.0)
NAMES = ("sphere", "rademacher", "dap-gaussian", "dap-refined", "dap-average")
GROUP = ["dimension", "density", "num_directions"]


def linear_problem(dimension: int, density: float) -> Problem:
    """f = g . x, with a share of the entries of g drawn from N(0, 1), the others 0."""
    count = round(density * dimension)

    def draw(key):
        g = jax.random.normal(key, (dimension,), float)
        return jnp.zeros(dimension), jnp.where(jnp.arange(dimension) < count, g, 0)

    return Problem(draw, jnp.dot, 1e-12)


def estimate(dimension: int, name: str, seed: int, tick: Tick) -> list[Row]:
    """Errors of one method, from sparse to dense."""
    rows, sizes = [], (dimension, 4 * dimension)
    for done, density in enumerate(DENSITIES, 1):
        key = jax.random.fold_in(jax.random.key(seed), done)
        problem = linear_problem(dimension, density)
        names = {"dimension": dimension, "density": density, "method": name}
        rows += [names | row for row in measure(problem, METHODS[name], sizes, key)]
        tick(done / len(DENSITIES))
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each dimension and method."""
    return {
        f"{d}/{name}": functools.partial(estimate, d, name, seed)
        for d in ((16, 64, 256) if full else (16, 64))
        for name in NAMES
    }


def ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """Errors over the sphere's, of the other methods."""
    found = relative(frame, ["method"], GROUP)
    found["label"] = found["method"].map({name: METHODS[name].label for name in NAMES})
    return found[found["method"] != "sphere"]


def tables(frame: pd.DataFrame) -> Tables:
    """On the nonzero entries, and on all."""
    found = ratios(frame)
    return {
        f"Error on {words} over the sphere's": found[
            found["measure"] == name
        ].pivot_table(index=GROUP, columns="label", values="ratio", sort=False)
        for name, words in (("tau_error", "nonzero entries"), ("error", "all entries"))
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """The span over dimensions and numbers of directions."""
    found = ratios(frame).query("measure == 'tau_error'")
    spans = found.groupby(["method", "density"])["ratio"].agg(["min", "max"])
    return [
        f"{METHODS[name].label}, nonzero entries, over the sphere: "
        + ", ".join(
            f"{density:.0%} nonzero {low:.2f} to {high:.2f}"
            for density, low, high in spans.loc[name].itertuples(name=None)
        )
        + "."
        for name in ("dap-gaussian", "dap-average")
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """The error on the nonzero entries, a panel for each dimension."""
    found = ratios(frame).query("measure == 'tau_error'")
    found["directions"] = (found["num_directions"] // found["dimension"]).map(
        {1: "K = d", 4: "K = 4 d"}
    )
    columns = {"x": "density", "y": "ratio", "hue": "label", "col": "dimension"}
    return lines(found, **columns, style="directions")


STUDY = Study("Sparse and dense gradients", cells, tables, findings, figure)
