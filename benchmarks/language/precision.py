"""Weights in float32, bfloat16 and int8: memory, time, and what tuning reaches."""

import functools

import numpy as np
import pandas as pd

from benchmarks.language import beside, cost, problem, runs, training
from benchmarks.language.problem import Source
from benchmarks.language.recipe import PRESETS, Recipe
from benchmarks.memory.programs import num_bytes, total_bytes
from benchmarks.study import Cell, Row, Study, Tables, Tick, bars

DTYPES = ("float32", "bfloat16", "int8")
LENGTH = 24  # tokens of the sentences whose forward pass is timed
SCALES = Recipe(tuning="scales", dtype="int8", calibrate=True, learning_rate=1e-3)
# What is tuned: its recipe, and the steps of a quick and a full run.
RECIPES = {"lora": (PRESETS["lora-zo"][1], 15, 200), "scales": (SCALES, 4, 50)}
RUNS = [*((dtype, "lora") for dtype in DTYPES), ("int8", "scales")]
FLOORS = ["floor_accuracy", "floor_calibrated", "floor_cross_entropy"]


def forward_passes(turns: int, tick: Tick) -> list[Row]:
    """A row for each dtype: bytes of the weights, of a pass and of steps, and time."""
    batch = cost.batch_of(LENGTH)
    models = {dtype: problem.load_model(Source(), dtype) for dtype in DTYPES}
    value_fn = problem.loss(models["int8"].config, np.arange(2, dtype=np.int32))
    params = {
        dtype: {"model": model.params, "adapter": {}} for dtype, model in models.items()
    }
    programs = {dtype: (value_fn, (params[dtype], batch)) for dtype in DTYPES}
    rows = {row["program"]: row for row in beside.measure(programs, turns, tick)}
    for dtype, tuned in RUNS:
        recipe = Recipe(tuning=tuned, dtype=dtype)
        ready = cost.without_sentences(recipe, models[dtype])
        planned = total_bytes(training.compiled_step(recipe, ready, batch))
        rows[dtype] |= {f"{tuned}_mb": planned / 1e6}
        rows[dtype] |= {"weights_mb": num_bytes(params[dtype]) / 1e6}
    return list(rows.values())


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for the passes, which take turns, and one for each run."""
    sentences, held_out = (256, (100, 500)) if full else (32, (32, 64))
    found = {"passes": functools.partial(forward_passes, 5 if full else 3)}
    for dtype, tuned in RUNS:
        recipe, *steps = RECIPES[tuned]
        changes = {"dtype": dtype, "steps": steps[full], "sentences": sentences}
        recipe = recipe.replace(seed=seed, **changes)
        name = f"{dtype}, {tuned}"
        found[name] = functools.partial(runs.measure, name, recipe, held_out=held_out)
    return found


def tables(frame: pd.DataFrame) -> Tables:
    passes = frame.dropna(subset="weights_mb").set_index("program")
    columns = ["weights_mb", "megabytes", "lora_mb", "scales_mb", "time"]
    title = f"Planned bytes of a forward pass and steps, {cost.BATCH} x {LENGTH} tokens"
    return {
        title: passes[columns],
        "Test sentences, before and after tuning": (
            runs.scores(runs.ends(frame), *FLOORS, "steps")
        ),
    }


FIGURE = functools.partial(bars, x="megabytes", y="program", hue="program")
NO_FINDINGS = lambda frame: []
STUDY = Study("Language: precision", cells, tables, NO_FINDINGS, FIGURE, timed=True)
