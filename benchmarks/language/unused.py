"""Forward passes against the probe on every sentence that neither was trained on.

500 test sentences leave an error of 1.5 points, more than what methods differ by. The
package holds ten times as many: those that training leaves out, most of them because
they are longer. Differences are taken sentence by sentence, which cancels what makes a
sentence easy or hard for both.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.language import probe, problem, tasks, training
from benchmarks.language.problem import Model, Problem, Source
from benchmarks.language.recipe import PRESETS, Recipe
from benchmarks.language.tasks import Examples
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, tabulate, with_error

SEEDS = 3
QUICK, FULL = "quick", "cores-zo"
ROWS = 512  # sentences whose texts are held at a time
SETS = ("test", "unused")


def recipe_of(full: bool, seed: int) -> Recipe:
    return dataclasses.replace(PRESETS[FULL if full else QUICK][1], seed=seed)


def held_out(
    model: Model, splits: tasks.Splits, recipe: Recipe
) -> tuple[Examples, np.ndarray]:
    """(Test sentences and unused ones, bool[N]: which are unused)."""
    read = lambda some, longest, cut: tasks.encode(
        model.tokenizer, some, longest, truncate=cut
    )
    test = read(splits.test, problem.LONGEST, True)
    others = read(splits.train, problem.LONGEST, True)
    short = np.flatnonzero(others.last < recipe.longest)
    unused = np.setdiff1d(np.arange(len(others.labels)), short[: recipe.sentences])
    parts = zip(test, others.take(unused), strict=True)
    both = Examples(*(np.concatenate(pair) for pair in parts))
    return both, np.arange(len(both.labels)) >= len(test.labels)


@functools.lru_cache(maxsize=1)
def _ready(full: bool) -> tuple[Model, Problem, Examples, np.ndarray]:
    """Seeds share what is run once."""
    recipe, source = recipe_of(full, 0), Source()
    model, splits = problem.load_model(source), problem.load_splits(source)
    return model, problem.make(recipe, model, splits), *held_out(model, splits, recipe)


def rows_of(
    method: str, seed: int, margins: np.ndarray, labels: np.ndarray, unused: np.ndarray
) -> list[Row]:
    """A row for each sentence: the margin in favour of its label."""
    signed = np.where(labels == 1, margins, -margins)
    return [
        {"method": method, "seed": seed, "sentence": i, "set": SETS[int(out)], "for": x}
        for i, (x, out) in enumerate(zip(signed.tolist(), unused, strict=True))
    ]


def tuned(full: bool, seed: int, tick: Tick) -> list[Row]:
    """Trains a preset, and asks what came out about all sentences."""
    model, ready, examples, unused = _ready(full)
    recipe = recipe_of(full, seed)
    run = training.train(
        recipe,
        ready,
        training.start(recipe, ready),
        every=recipe.steps,
        tick=lambda progress: tick(0.5 * progress.step / recipe.steps),
    )
    run = training.with_last_head(recipe, ready, run)
    params = ready.params | {"adapter": run.tuned}
    margins, template = [], len(tasks.template_end(model.tokenizer))
    for start in range(0, len(unused), ROWS):  # texts of all at once would be 6 GB
        some = examples.take(slice(start, start + ROWS))
        batch = problem.run_texts(
            ready.config, model.params, ready.bottom, template, some
        )
        margins.append(problem.evaluate(ready, params, batch).margins)
        tick(0.5 + 0.5 * min(1.0, (start + ROWS) / len(unused)))
    name = FULL if full else QUICK
    return rows_of(name, seed, np.concatenate(margins), examples.labels, unused)


def probes(full: bool, tick: Tick) -> list[Row]:
    """Both probes, on the same sentences."""
    model, _, examples, unused = _ready(full)
    parts = probe.splits_of(Source(), model, recipe_of(full, 0).sentences)[:2]
    train, validation, test = (
        probe.features(model, some, lambda share, i=i: tick((i + share) / 3))
        for i, some in enumerate((*parts, examples))
    )
    one, layer, *_ = probe.fitted(train, validation)
    margins = (
        one.decision_function(test.states[:, layer]),
        probe.margins_together(train, test),
    )
    return [
        row
        for name, found in zip(probe.NAMES, margins, strict=True)
        for row in rows_of(name, 0, found, examples.labels, unused)
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for the probes and one for each seed."""
    found: dict[str, Cell] = {"probes": functools.partial(probes, full)}
    for run_seed in range(seed, seed + SEEDS):
        found[f"seed {run_seed}"] = functools.partial(tuned, full, run_seed)
    return found


def scores(frame: pd.DataFrame, method: str, which: str) -> pd.DataFrame:
    """(Share of seeds that are right, mean cross-entropy) of each sentence."""
    some = frame[(frame["method"] == method) & (frame["set"] == which)]
    values = pd.DataFrame(
        {
            "sentence": some["sentence"],
            "accuracy": (some["for"] > 0).astype(float),
            "cross_entropy": np.logaddexp(0, -some["for"]),
        }
    )
    return values.groupby("sentence").mean()


def mean_and_error(values: pd.Series) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def above(frame: pd.DataFrame, name: str, which: str) -> pd.DataFrame:
    """What the preset has more than a probe, by sentence."""
    preset = next(x for x in frame["method"].unique() if x not in probe.NAMES)
    return scores(frame, preset, which) - scores(frame, name, which)


def tables(frame: pd.DataFrame) -> list[Table]:
    out = []
    columns = ["", "accuracy, %", "cross-entropy", "accuracy, less\nthe row's, points"]
    columns += ["cross-entropy,\nless the row's"]
    for which in SETS:
        rows, number = [], 0
        for method in frame["method"].unique():
            found = scores(frame, method, which)
            number = len(found)
            cell = [
                with_error(*mean_and_error(100 * found["accuracy"])),
                with_error(*mean_and_error(found["cross_entropy"])),
                "",
                "",
            ]
            if method in probe.NAMES:
                gap = above(frame, method, which)
                cell[2:] = [
                    with_error(*mean_and_error(100 * gap["accuracy"])),
                    with_error(*mean_and_error(gap["cross_entropy"])),
                ]
            rows.append([method, *cell])
        out.append(tabulate(f"{number:,} {which} sentences", columns, rows))
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    out = []
    for which in SETS:
        for name in probe.NAMES:
            gap = above(frame, name, which)
            points, error = mean_and_error(100 * gap["accuracy"])
            nats, spread = mean_and_error(gap["cross_entropy"])
            out.append(
                f"{len(gap):,} {which} sentences, less the {name}: {points:+.2f} +-"
                f" {error:.2f} points, {nats:+.4f} +- {spread:.4f} in cross-entropy."
            )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(6, 2.5), layout="constrained")
    for axis, (column, unit) in zip(
        out.subplots(1, 2, sharey=True),
        (("accuracy", "points"), ("cross_entropy", "nats")),
        strict=True,
    ):
        for colour, which in zip(COLOURS, SETS, strict=False):
            scale = 100 if column == "accuracy" else 1
            gaps = [scale * above(frame, name, which)[column] for name in probe.NAMES]
            means, errors = np.transpose([mean_and_error(gap) for gap in gaps])
            axis.errorbar(
                means,
                probe.NAMES,
                xerr=errors,
                fmt="o",
                color=colour,
                label=which,
                capsize=3,
            )
        axis.axvline(0, color="0.6", linewidth=0.8)
        axis.set_xlabel(f"{column.replace('_', '-')}, {unit}")
    out.suptitle("cores-zo less the probe", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return out


STUDY = Study("Language: beyond the probe", cells, tables, findings, figure)
