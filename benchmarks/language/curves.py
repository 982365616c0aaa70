"""How far forward passes get: presets over seeds, beside the floors and the ceiling."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.language import problem, report, training
from benchmarks.language.problem import Floors, Source
from benchmarks.language.recipe import PRESETS, Recipe
from benchmarks.study import Cell, Row, Study, tabulate, with_error

SEEDS = 3
CEILING = "lora-adam"
QUICK = ("quick", CEILING)
FULL = ("lora-zo", "prompt-zo", CEILING)
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


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each preset and seed; one seed is enough for the ceiling."""

    def cell(preset: str, run_seed: int) -> Cell:
        def run(tick: Callable[[float], None]) -> list[Row]:
            chosen = recipe_of(preset, run_seed)
            ready, floors = _ready(preset)
            ready = problem.with_seed(ready, chosen)
            # The ceiling is a mark, not a curve.
            validations = 1 if preset == CEILING else VALIDATIONS
            out = training.train(
                chosen,
                ready,
                training.start(chosen, ready),
                every=max(1, chosen.steps // validations),
                tick=lambda progress: tick(progress.step / chosen.steps),
            )
            params = ready.params | {training.tuned_part(chosen): out.tuned}
            test = problem.evaluate(ready, params, ready.test)
            common = {"preset": preset, "seed": run_seed} | floors._asdict()
            common = {
                f"floor_{name}" if name in Floors._fields else name: value
                for name, value in common.items()
            }
            last = {
                "test_accuracy": test.accuracy,
                "test_cross_entropy": test.cross_entropy,
            }
            rows = [common | row for row in out.curve]
            return [*rows[:-1], rows[-1] | last]

        return run

    return {
        f"{preset}, seed {run_seed}": cell(preset, run_seed)
        for preset in (FULL if full else QUICK)
        for run_seed in range(seed, seed + (1 if preset == CEILING else SEEDS))
    }


def floors_of(frame: pd.DataFrame) -> Floors:
    first = frame.iloc[0]
    return Floors(*(float(first[f"floor_{name}"]) for name in Floors._fields))


def ends(frame: pd.DataFrame) -> pd.DataFrame:
    """The last row of each run, which has what it scored on the test sentences."""
    return frame[frame["test_accuracy"].notna()]


def _mean(values: pd.Series) -> tuple[float, float]:
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


def share_of_gap(frame: pd.DataFrame, preset: str) -> float:
    """What a preset closes of the gap from calibrated zero-shot to the ceiling."""
    at_end = ends(frame).groupby("preset")["test_accuracy"].mean()
    floor = floors_of(frame).calibrated
    return (at_end[preset] - floor) / (at_end[CEILING] - floor)


def tables(frame: pd.DataFrame) -> list[Table]:
    floors = floors_of(frame)
    rows = [
        [
            "zero-shot",
            "0",
            f"{100 * floors.accuracy:.1f}",
            f"{floors.cross_entropy:.3f}",
            "-",
            "-",
        ],
        [
            "zero-shot, calibrated",
            "0",
            f"{100 * floors.calibrated:.1f}",
            "-",
            "0%",
            "-",
        ],
    ]
    for preset, group in ends(frame).groupby("preset", sort=False):
        rows.append(
            [
                preset,
                f"{group['passes'].iloc[0]:,.0f}",
                with_error(*_mean(100 * group["test_accuracy"])),
                with_error(*_mean(group["test_cross_entropy"])),
                f"{share_of_gap(frame, preset):.0%}",
                f"{group['seconds'].mean() / 60:.1f}",
            ]
        )
    columns = [
        "preset",
        "forward\npasses",
        "test\naccuracy, %",
        "cross-\nentropy",
        "of the gap\nto the ceiling",
        "minutes",
    ]
    return [tabulate(f"500 test sentences, {SEEDS} seeds", columns, rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    floor = floors_of(frame).calibrated
    out = []
    for preset, group in ends(frame).groupby("preset", sort=False):
        by_seed = ", ".join(f"{x:.1%}" for x in group["test_accuracy"])
        gained = 100 * (group["test_accuracy"].mean() - floor)
        start = frame[(frame["preset"] == preset) & (frame["step"] == 0)]
        out.append(
            f"{preset}: {gained:+.1f} points on calibrated zero-shot (seeds {by_seed});"
            f" before the first step {start['accuracy'].mean():.1%} on the validation"
            f" sentences, at the end {group['accuracy'].mean():.1%}."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    curves = {
        preset: group
        for preset, group in frame.groupby("preset", sort=False)
        if preset != CEILING
    }
    ceiling = ends(frame[frame["preset"] == CEILING])
    return report.curve_figure(
        curves,
        floors_of(frame),
        {
            "accuracy": ceiling["test_accuracy"].mean(),
            "cross_entropy": ceiling["test_cross_entropy"].mean(),
        },
    )


STUDY = Study("Language: curves", cells, tables, findings, figure, timed=True)
