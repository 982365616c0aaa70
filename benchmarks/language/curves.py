"""How far forward passes get: presets over seeds, beside the floors and the ceiling."""

import functools
import time

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.language import cost, probe, problem, report, runs, training
from benchmarks.language.problem import Floors, Source
from benchmarks.language.recipe import PRESETS
from benchmarks.memory.programs import total_bytes
from benchmarks.study import Cell, Row, Study, Tables, Tick

CEILING = "lora-adam"
QUICK = ("quick", CEILING)
FULL = ("cores-zo", CEILING, "lora-zo")
VALIDATIONS = 12


def probes(sentences: int, tick: Tick) -> list[Row]:
    """A row for each regression on frozen states, with what both cost."""
    config, params, _ = problem.load_model(Source())
    batch = cost.batch_of(probe.LONGEST, problem.ROWS)
    forward = jax.jit(problem.loss(config, np.arange(2)))
    planned = forward.lower({"model": params, "adapter": {}}, batch).compile()
    begin = time.monotonic()
    found, labels = probe.margins(sentences, tick=tick)
    common = {"sentence_passes": sentences, "step_mb": total_bytes(planned) / 1e6}
    common["seconds"] = time.monotonic() - begin
    return [
        common
        | {
            "name": name,
            "test_accuracy": np.mean((margins > 0) == labels),
            "test_cross_entropy": np.mean(np.logaddexp(0, margins * (1 - 2 * labels))),
        }
        for name, margins in found.items()
    ]


def train(preset: str, seed: int, tick: Tick) -> list[Row]:
    """The rows of a run, with what is planned for a step."""
    recipe = PRESETS[preset][1].replace(seed=seed)
    # The ceiling is a mark, not a curve.
    every = max(1, recipe.steps // (1 if preset == CEILING else VALIDATIONS))
    rows = runs.measure(preset, recipe, tick, every=every)
    ready, _ = runs.ready(recipe)
    batch = ready.train.take(slice(recipe.batch))
    planned = total_bytes(training.compiled_step(recipe, ready, batch))
    return [row | {"step_mb": planned / 1e6} for row in rows]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    presets = FULL if full else QUICK
    sentences = max(PRESETS[preset][1].sentences for preset in presets)
    found = {"probes": functools.partial(probes, sentences)}
    for preset in presets:
        for run_seed in range(seed, seed + (1 if preset == CEILING else runs.SEEDS)):
            cell = functools.partial(train, preset, run_seed)
            found[f"{preset}, seed {run_seed}"] = cell
    return found


def floors_of(frame: pd.DataFrame) -> Floors:
    """Scores of the untuned model, which rows of presets have."""
    first = frame.dropna(subset="floor_accuracy").iloc[0]
    return Floors(*(float(first[f"floor_{name}"]) for name in Floors._fields))


def tables(frame: pd.DataFrame) -> Tables:
    floors, last = floors_of(frame), runs.ends(frame)
    found = runs.scores(last, "sentence_passes", "step_mb")
    found["minutes"] = last.groupby("name")["seconds"].mean() / 60
    found = found.astype(object)  # texts stand beside numbers
    found.loc["zero-shot", runs.TEST] = 100 * floors.accuracy, floors.cross_entropy
    found.loc["calibrated", runs.TEST] = 100 * floors.calibrated, np.nan
    words = ["words_accuracy", "words_nats"]
    each = last.dropna(subset="seed").set_index(["name", "seed"])
    return {
        "500 test sentences": found,
        "By seed; where a head answers at the end, by words too": (
            each[[*runs.TEST, *words]]
        ),
    }


def findings(frame: pd.DataFrame) -> list[str]:
    once = frame["prepared"].max() / 60
    return [f"What presets run once took at most {once:.1f} minutes more."]


def figure(frame: pd.DataFrame) -> Figure:
    last = runs.ends(frame)
    marked = last[last["seed"].isna() | (last["name"] == CEILING)]
    means = marked.groupby("name", sort=False)[runs.TEST].mean()
    marks = means.set_axis(["accuracy", "cross_entropy"], axis=1).to_dict("index")
    rest = frame[~frame["name"].isin(means.index)]
    curves = dict(list(rest.groupby("name", sort=False)))
    return report.curve_figure(curves, floors_of(frame), marks)


STUDY = Study("Language: curves", cells, tables, findings, figure, timed=True)
