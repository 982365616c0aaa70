"""Forward passes, the probe and gradients on every sentence that none was trained on.

500 test sentences leave an error of 1.5 points, more than what methods differ by. The
package holds ten times as many: those that training leaves out, most of them because
they are longer. Differences are taken sentence by sentence, which cancels what makes a
sentence easy or hard for all.
"""

import functools

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from benchmarks.language import probe, problem, runs, tasks, training
from benchmarks.language.problem import Batch, Model, Source
from benchmarks.language.recipe import PRESETS, Recipe
from benchmarks.study import COLOURS, Cell, Row, Study, Tables, Tick, mean_error

ROWS = 512  # sentences whose texts are held at a time
TUNED = "tuned cores"
EXACT = "LoRA by exact gradients"


def recipe_of(full: bool, seed: int) -> Recipe:
    """The preset of a run."""
    preset = PRESETS["cores-zo" if full else "quick"][1]
    return preset.replace(seed=seed)


def exact(recipe: Recipe) -> Recipe:
    """The longest first-order run on the same sentences: 150 steps for all 4,096."""
    steps = max(1, 150 * recipe.sentences // 4096)
    return PRESETS["lora-adam"][1].replace(sentences=recipe.sentences, steps=steps)


def held_out(recipe: Recipe) -> tuple[Model, Batch, np.ndarray]:
    """(Model, test sentences and unused ones, bool[N]: which are unused)."""
    source = Source()
    model, splits = problem.load_model(source), problem.load_splits(source)
    test, others = (
        tasks.encode(model.tokenizer, some, problem.LONGEST, truncate=True)
        for some in (splits.test, splits.train)
    )
    short = np.flatnonzero(others.last < recipe.longest)
    unused = np.setdiff1d(np.arange(len(others.labels)), short[: recipe.sentences])
    parts = zip(test[:3], others.take(unused)[:3], strict=True)
    both = Batch(*(np.concatenate(pair) for pair in parts))
    return model, both, np.arange(len(both.labels)) >= len(test.labels)


def rows_of(
    name: str, seed: int, margins: np.ndarray, labels: np.ndarray, unused: np.ndarray
) -> list[Row]:
    """A row for each sentence: the margin in favour of its label."""
    columns = {
        "name": name,
        "seed": seed,
        "sentence": np.arange(len(labels)),
        "set": np.where(unused, "unused", "test"),
        "for": np.where(labels == 1, margins, -margins),
    }
    return pd.DataFrame(columns).to_dict("records")


def tuned(name: str, recipe: Recipe, tick: Tick) -> list[Row]:
    """Trains by a recipe, and asks what came out about all sentences."""
    ready, _ = runs.ready(recipe)
    _, params = training.trained(recipe, ready, lambda share: tick(share / 2))
    model, examples, unused = held_out(recipe)
    margins = []
    for start in range(0, len(unused), ROWS):  # texts of all at once would be 6 GB
        some = examples.take(slice(start, start + ROWS))
        batch = problem.prepare(recipe, model, [some])[2][0]
        margins.append(problem.evaluate(ready, params, batch).margins)
        tick(0.5 + 0.5 * min(1.0, (start + ROWS) / len(unused)))
    every = np.concatenate(margins)
    return rows_of(name, recipe.seed, every, examples.labels, unused)


def probes(recipe: Recipe, tick: Tick) -> list[Row]:
    """Both probes, on the same sentences."""
    _, examples, unused = held_out(recipe)
    found, labels = probe.margins(recipe.sentences, examples, tick)
    return [
        row
        for name, margins in found.items()
        for row in rows_of(name, 0, margins, labels, unused)
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    first = recipe_of(full, 0)
    found = {
        "probes": functools.partial(probes, first),
        "exact gradients": functools.partial(tuned, EXACT, exact(first)),
    }
    for run_seed in range(seed, seed + runs.SEEDS):
        cell = functools.partial(tuned, TUNED, recipe_of(full, run_seed))
        found[f"seed {run_seed}"] = cell
    return found


def scores(frame: pd.DataFrame, by: str = "sentence") -> pd.DataFrame:
    """Percent right and mean cross-entropy, of each sentence or of each seed."""
    found = frame.assign(
        points=100.0 * (frame["for"] > 0),
        cross_entropy=np.logaddexp(0, -frame["for"]),
    )
    groups = found.groupby(["set", "name", by], sort=False)
    return groups[["points", "cross_entropy"]].mean()


def gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """What was tuned less each of the others, by sentence."""
    found = scores(frame)
    less = found.drop(index=TUNED, level="name")
    ours = found.xs(TUNED, level="name").reindex(less.index.droplevel("name"))
    return ours.set_axis(less.index) - less


def tables(frame: pd.DataFrame) -> Tables:
    return {
        "Means, with the error of the sentences": (
            scores(frame).groupby(["set", "name"], sort=False).agg(mean_error)
        ),
        "By seed": scores(frame, "seed").xs(TUNED, level="name"),
    }


def findings(frame: pd.DataFrame) -> list[str]:
    out = []
    for (which, name), gap in gaps(frame).groupby(["set", "name"], sort=False):
        (points, nats), (error, spread) = gap.mean(), gap.sem()
        out.append(
            f"{len(gap):,} {which} sentences, less the {name}: {points:+.2f} +-"
            f" {error:.2f} points, {nats:+.4f} +- {spread:.4f} in cross-entropy."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    found = gaps(frame).reset_index().melt(["set", "name", "sentence"])
    axes = {"x": "value", "y": "name", "hue": "set", "col": "variable"}
    shown = {"kind": "point", "errorbar": "se", "linestyle": "none", "height": 3}
    shown |= {"palette": COLOURS[:2], "sharex": False}
    grid = seaborn.catplot(found, **axes, **shown)
    grid.refline(x=0).set_titles("{col_name}")
    return grid.set(xlabel=f"{TUNED} less it", ylabel="").figure


STUDY = Study("Language: beyond the probe", cells, tables, findings, figure)
