"""How far forward passes get: presets over seeds, beside the floors and the ceiling."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.language import probe, problem, report, training
from benchmarks.language.problem import Floors, Source
from benchmarks.language.recipe import PRESETS, Recipe
from benchmarks.memory.programs import total_bytes
from benchmarks.study import Cell, Row, Study, Tick, tabulate, with_error

SEEDS = 3
CEILING = "lora-adam"
QUICK = ("quick", CEILING)
FULL = ("cores-zo", CEILING, "lora-zo")
VALIDATIONS = 12


def recipe_of(preset: str, seed: int) -> Recipe:
    return dataclasses.replace(PRESETS[preset][1], seed=seed)


@functools.lru_cache(maxsize=1)  # presets come one after the other
def _ready(preset: str) -> tuple[problem.Problem, Floors]:
    """The problem of a preset; seeds share what is run once."""
    chosen, source = recipe_of(preset, 0), Source()
    model = problem.load_model(source, chosen.dtype)
    ready = problem.make(chosen, model, problem.load_splits(source))
    return ready, problem.floors(ready)


def probes(sentences: int, tick: Tick) -> list[Row]:
    """A row for each regression on frozen states, with what it costs."""
    source = Source()
    model = problem.load_model(source)
    batch = problem.Batch(*probe.splits_of(source, model, problem.ROWS)[0])
    of_words = problem.loss(model.config, np.arange(2))
    params = {"model": model.params, "adapter": {}}
    planned = total_bytes(jax.jit(of_words).lower(params, batch).compile())
    rows = probe.measure((sentences,), tick)
    return [
        {
            "preset": name,
            "seed": 0,
            "sentence_passes": sentences,
            "step_mb": planned / 1e6,
            "seconds": row["features_seconds"] + row["fit_seconds"],
            "test_accuracy": row["accuracy"],
            "test_cross_entropy": row["cross_entropy"],
        }
        for name, row in zip(probe.NAMES, rows, strict=True)
    ]


def train(preset: str, seed: int, tick: Tick) -> list[Row]:
    """A row for each validation; the last has what was scored on the test sentences."""
    chosen = recipe_of(preset, seed)
    start = time.monotonic()
    ready, floors = _ready(preset)
    prepared = time.monotonic() - start
    ready = problem.with_seed(ready, chosen)
    # The ceiling is a mark, not a curve.
    validations = 1 if preset == CEILING else VALIDATIONS
    planned = training.step_bytes(
        chosen, ready, training.on_device(ready.train, np.arange(chosen.batch))
    )
    every = max(1, chosen.steps // validations)
    out, test = training.train_and_test(chosen, ready, tick, every=every)
    # What was run once: texts and the layers below, where a recipe keeps these.
    once = len(ready.train.labels) if chosen.top or chosen.after_text else 0
    common = {
        "preset": preset,
        "seed": seed,
        "prepared": prepared,
        "step_mb": planned / 1e6,
        **{f"floor_{name}": value for name, value in floors._asdict().items()},
    }
    rows = [
        common | row | {"sentence_passes": once + row["passes"] * chosen.batch}
        for row in out.curve
    ]
    last = {"test_accuracy": test.accuracy, "test_cross_entropy": test.cross_entropy}
    if chosen.head == "after":  # one more pass over each sentence
        words = problem.evaluate(
            ready, ready.params | {"adapter": out.tuned}, ready.test
        )
        last |= {"words_accuracy": words.accuracy, "words_nats": words.cross_entropy}
        last["sentence_passes"] = rows[-1]["sentence_passes"] + len(ready.train.labels)
    return [*rows[:-1], rows[-1] | last]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for the probes, each preset and seed; the ceiling has one seed."""
    presets = FULL if full else QUICK
    sentences = max(recipe_of(preset, seed).sentences for preset in presets)
    found: dict[str, Cell] = {"probes": functools.partial(probes, sentences)}
    for preset in presets:
        for run_seed in range(seed, seed + (1 if preset == CEILING else SEEDS)):
            cell: Callable[[Tick], list[Row]]
            cell = functools.partial(train, preset, run_seed)
            found[f"{preset}, seed {run_seed}"] = cell
    return found


def floors_of(frame: pd.DataFrame) -> Floors:
    first = frame[frame["floor_accuracy"].notna()].iloc[0]
    return Floors(*(float(first[f"floor_{name}"]) for name in Floors._fields))


def ends(frame: pd.DataFrame) -> pd.DataFrame:
    """The last row of each run, which has what it scored on the test sentences."""
    return frame[frame["test_accuracy"].notna()]


def _mean(values: pd.Series) -> tuple[float, float]:
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


def above_probe(frame: pd.DataFrame, preset: str, name: str) -> tuple[float, float]:
    """(Points of accuracy, cross-entropy) of a preset's mean less those of a probe."""
    means = (
        ends(frame).groupby("preset")[["test_accuracy", "test_cross_entropy"]].mean()
    )
    gap = means.loc[preset] - means.loc[name]
    return 100 * gap["test_accuracy"], gap["test_cross_entropy"]


def tables(frame: pd.DataFrame) -> list[Table]:
    floors = floors_of(frame)
    raw = [f"{100 * floors.accuracy:.1f}", f"{floors.cross_entropy:.3f}"]
    rows = [
        ["zero-shot", "0", *raw, "-", "-"],
        ["calibrated", "0", f"{100 * floors.calibrated:.1f}", "-", "-", "-"],
    ]
    for preset, group in ends(frame).groupby("preset", sort=False):
        words = group.get("words_accuracy", pd.Series(dtype=float)).dropna()
        if len(words):
            rows.append(
                [
                    f"{preset}, by its words",
                    "",
                    with_error(*_mean(100 * words)),
                    with_error(*_mean(group["words_nats"])),
                    "",
                    "",
                ]
            )
        rows.append(
            [
                preset,
                f"{group['sentence_passes'].iloc[0]:,.0f}",
                with_error(*_mean(100 * group["test_accuracy"])),
                with_error(*_mean(group["test_cross_entropy"])),
                f"{group['seconds'].mean() / 60:.1f}",
                f"{group['step_mb'].iloc[0]:,.0f}",
            ]
        )
    columns = ["", "forward passes\nof a sentence", "test\naccuracy, %"]
    columns += ["cross-\nentropy", "minutes", "planned\nMB"]
    table = tabulate(f"500 test sentences, {SEEDS} seeds", columns, rows)
    once = frame["prepared"].max() / 60
    table.caption = (
        f"{CEILING} goes backward, too: its passes are three each. What presets run"
        f" once took at most {once:.1f} minutes more."
    )
    return [table]


def findings(frame: pd.DataFrame) -> list[str]:
    floor = floors_of(frame).calibrated
    out = []
    for preset, group in ends(frame).groupby("preset", sort=False):
        if preset in probe.NAMES:
            continue
        by_seed = ", ".join(f"{x:.1%}" for x in group["test_accuracy"])
        gained = 100 * (group["test_accuracy"].mean() - floor)
        beside = "; ".join(
            f"{points:+.1f} and {nats:+.3f} in cross-entropy on the {name}"
            for name in probe.NAMES
            for points, nats in (above_probe(frame, preset, name),)
        )
        out.append(
            f"{preset}: {gained:+.1f} points on calibrated zero-shot (seeds {by_seed});"
            f" {beside}."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    marks = (*probe.NAMES, CEILING)
    curves = {
        preset: group
        for preset, group in frame.groupby("preset", sort=False)
        if preset not in marks
    }
    scores = {
        name: {
            "accuracy": group["test_accuracy"].mean(),
            "cross_entropy": group["test_cross_entropy"].mean(),
        }
        for name, group in ends(frame).groupby("preset", sort=False)
        if name in marks
    }
    return report.curve_figure(curves, floors_of(frame), scores)


STUDY = Study("Language: curves", cells, tables, findings, figure, timed=True)
