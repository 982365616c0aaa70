"""Where does two-stage DAP pay? From sparse to dense gradients.

At equal directions, which are equal calls of f, over the error of the sphere.
"""

import functools

import jax
import jax.numpy as jnp
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.study import Cell, Row, Study, Tables, Tick, lines
from benchmarks.synthetic.estimates import METHODS, PROBLEMS, Problem, measure

DENSITIES = (1 / 16, 1 / 4, 1 / 2, 1.0)
SIZES = (1, 4, 16)  # K over d
REFINED, AVERAGED = "two-stage DAP, refined", "two-stage DAP, averaged"
NAMES = ("sphere", "Rademacher", "exact DAP, gaussian", REFINED, AVERAGED)
PRODUCT = "product, d = 16"
MEASURES = {"tau_error": "large entries", "error": "all entries"}


def linear_problem(dimension: int, density: float) -> Problem:
    """f = g . x, with a share of the entries of g drawn from N(0, 1), the others 0."""
    count = round(density * dimension)

    def draw(key):
        g = jax.random.normal(key, (dimension,), float)
        return jnp.zeros(dimension), jnp.where(jnp.arange(dimension) < count, g, 0)

    return Problem(draw, jnp.dot, 1e-12)


def on_linear(d: int, name: str, seed: int, tick: Tick) -> list[Row]:
    """Errors of one method, from sparse to dense."""
    rows = []
    for done, density in enumerate(DENSITIES, 1):
        key = jax.random.fold_in(jax.random.key(seed), done)
        sizes = [ratio * d for ratio in SIZES[:2]]
        found = measure(linear_problem(d, density), METHODS[name], sizes, key)
        names = {"problem": f"linear, d = {d}", "density": density, "method": name}
        rows += [names | row for row in found]
        tick(done / len(DENSITIES))
    return rows


def on_product(name: str, seed: int, tick: Tick) -> list[Row]:
    """Errors on the product of 16 entries, whose gradient has one that is not 0."""
    sizes = [16 * ratio for ratio in SIZES]
    found = measure(PROBLEMS["product"], METHODS[name], sizes, jax.random.key(seed))
    names = {"problem": PRODUCT, "density": 1 / 16, "method": name}
    return [names | row for row in found]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """The product, and linear functions by density."""
    return {
        f"product/{name}": functools.partial(on_product, name, seed) for name in NAMES
    } | {
        f"linear {d}/{name}": functools.partial(on_linear, d, name, seed)
        for d in ((16, 64, 256) if full else (16, 64))
        for name in NAMES
    }


def ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """Errors over the sphere's, a column a method."""
    keys = ["problem", "measure", "density", "num_directions"]
    wide = frame.pivot_table("mean", keys, "method", sort=False)
    return wide.div(wide["sphere"], axis="index")


def tables(frame: pd.DataFrame) -> Tables:
    """By share of nonzero entries and K."""
    return {
        f"{problem}, {MEASURES[name]}: error over the sphere's": (
            part.droplevel([0, 1]).T.dropna()
        )
        for (problem, name), part in ratios(frame).groupby(level=[0, 1], sort=False)
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """On the product, and what is left of it as gradients grow dense."""
    found = ratios(frame).xs("tau_error", level="measure")
    even = found.loc[PRODUCT, REFINED]
    said = [f"{ratio:.2f} at K = {k}" for (_, k), ratio in even.items()]
    text = [
        "Product, large entries, refined at an even split over the sphere:"
        f" {', '.join(said)}."
    ]
    linear = found.drop(PRODUCT, level="problem")
    for name in (REFINED, AVERAGED):
        spans = linear[name].groupby("density").agg(["min", "max"])
        said = [f"{share:.0%} {a:.2f} to {b:.2f}" for share, a, b in spans.itertuples()]
        text.append(f"{name}, by share of nonzero entries: {', '.join(said)}.")
    return text


def figure(frame: pd.DataFrame) -> Figure:
    """By K over d, a panel for each problem."""
    found = ratios(frame).xs("tau_error", level="measure")
    tall = found.stack().rename("over the sphere's").reset_index()
    axes = {"x": "num_directions", "y": "over the sphere's", "hue": "method"}
    return lines(tall, "xy", **axes, style="density", col="problem")


STUDY = Study("Where two-stage DAP pays", cells, tables, findings, figure)
