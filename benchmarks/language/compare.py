"""Methods at equal forward passes: ZoAR beside vanilla, DAP beside the sphere.

On LoRA here, on small cores in ``compare_cores``; ``objectives`` compares what is
lowered in the same way.
"""

import functools
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.language import runs
from benchmarks.language.recipe import PRESETS, TWO_SIDED, Recipe, queries
from benchmarks.study import Cell, Study, Tables, lines

QUICK, FULL = 300, 2000  # forward passes


class Comparison(NamedTuple):
    """Methods on one recipe, each at the settings that are best for it."""

    base: Recipe
    methods: dict[str, dict[str, Any]]  # changes of the base
    pairs: dict[str, str]  # a method, and what it stands beside
    settings: list[dict[str, float]]  # more changes, which are tried with each
    by: str = "cross_entropy"  # of the validation sentences chooses among these


METHODS = {
    "two-sided, gaussian": {"sampler": "gaussian"},
    "ZoAR of pairs, N = 5": {"sampler": "gaussian", "estimator": "zoar", "history": 5},
    "one-sided, sphere, K = 2": {
        "sampler": "sphere",
        "estimator": "one-sided",
        "directions": 2,
    },
    "two-stage DAP, K = 2": {
        "sampler": "gaussian",
        "estimator": "dap",
        "directions": 2,
    },
}
PAIRS = {
    "ZoAR of pairs, N = 5": "two-sided, gaussian",
    "two-stage DAP, K = 2": "one-sided, sphere, K = 2",
}


def of_papers(preset: str, *rates: float, **changes: Any) -> Comparison:
    """The papers' methods on a preset, so small that seeds can be afforded.

    Nothing is clipped: a bound on each derivative and one on an average of them are not
    the same.
    """
    base = PRESETS[preset][1]
    unclipped = TWO_SIDED | {"clip": 0.0}
    base = base.replace(batch=8, sentences=1024, **unclipped, **changes)
    return Comparison(base, METHODS, PAIRS, [{"learning_rate": rate} for rate in rates])


def cells(of: Comparison, full: bool, seed: int) -> dict[str, Cell]:
    found = {}
    for run_seed in range(seed, seed + runs.SEEDS):
        for method, changes in of.methods.items():
            for setting in of.settings:
                both = changes | setting | {"seed": run_seed}
                recipe = of.base.replace(**both)
                steps = (FULL if full else QUICK) // queries(recipe)
                recipe = recipe.replace(steps=steps)
                at = ", ".join(f"{value:g}" for value in setting.values())
                name = f"{method}, {at}, seed {run_seed}"
                found[name] = functools.partial(runs.measure, method, recipe)
    return found


def tables(of: Comparison, frame: pd.DataFrame) -> Tables:
    settings, last = list(of.settings[0]), runs.ends(frame)
    each = {"index": "name", "columns": settings, "values": f"test_{of.by}"}
    return {
        f"Test sentences after {frame['passes'].max()} forward passes, best setting": (
            runs.scores(runs.best(last, settings, of.by), *settings)
        ),
        f"Test {of.by} by setting": last.pivot_table(**each, sort=False),
    }


def paired(chosen: pd.DataFrame, pairs: dict[str, str]) -> list[str]:
    """A sentence for each pair: the differences, taken seed by seed."""
    chosen, out = chosen.set_index(["name", "seed"])[runs.TEST], []
    for method, other in pairs.items():
        gaps = chosen.loc[method] - chosen.loc[other]
        points, nats = 100 * gaps["test_accuracy"], gaps["test_cross_entropy"]
        out.append(
            f"{method} less {other}, paired by seed: accuracy {points.mean():+.3g} +-"
            f" {points.sem():.2g} points, cross-entropy {nats.mean():+.3g} +-"
            f" {nats.sem():.2g}."
        )
    return out


def findings(of: Comparison, frame: pd.DataFrame) -> list[str]:
    at_best = runs.best(runs.ends(frame), list(of.settings[0]), of.by)
    floor = f"Calibrated zero-shot: {frame['floor_calibrated'].iloc[0]:.1%}."
    return [floor, *paired(at_best, of.pairs)]


def figure(of: Comparison, frame: pd.DataFrame) -> Figure:
    axes = {"x": "learning_rate", "y": f"test_{of.by}", "log": "x"}
    return lines(runs.ends(frame), **axes, hue="name", style="smoothing")


def study(title: str, of: Comparison) -> Study:
    """The study of a comparison."""
    parts = (functools.partial(part, of) for part in (cells, tables, findings, figure))
    return Study(f"Language: {title}", *parts, timed=True)


STUDY = study("methods compared", of_papers("lora-zo", 0.1, 0.3, 0.9, 2.7, top=10))
