"""Weights in float32, bfloat16 and int8: memory, time, and what tuning reaches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.language import cost, problem, training
from benchmarks.language.problem import Floors, Model, Problem, Source
from benchmarks.language.recipe import PRESETS, Recipe
from benchmarks.memory.programs import num_bytes, total_bytes
from benchmarks.speed.timing import device_line, median_ratio, take_turns
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, plain, tabulate

DTYPES = ("float32", "bfloat16", "int8")
LENGTH = 24  # tokens of the sentences whose forward pass is timed
# Of each tuning: its recipe, and the steps of a quick and a full run.
RECIPES = {
    "lora": (PRESETS["quick"][1], 15, 200),
    "scales": (
        Recipe(tuning="scales", dtype="int8", calibrate=True, learning_rate=1e-3),
        4,
        50,
    ),
}
NUMBERS = ["weights_mb", "forward_mb", "to_float32"]
RUNS = [*((dtype, "lora") for dtype in DTYPES), ("int8", "scales")]


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a study: turns, seeds, sentences to train on, validate and test with."""

    turns: int
    seeds: int
    sentences: int
    validation: int
    test: int


QUICK, FULL = Size(3, 1, 32, 32, 64), Size(5, 1, 256, 100, 500)


@functools.cache
def _model(dtype: str) -> Model:
    return problem.load_model(Source(), dtype)


def recipe_of(dtype: str, tuned: str, full: bool, seed: int) -> Recipe:
    """The recipe of a run."""
    base, *steps = RECIPES[tuned]
    return dataclasses.replace(
        base,
        dtype=dtype,
        steps=steps[full],
        seed=seed,
        sentences=(FULL if full else QUICK).sentences,
    )


def forward_passes(turns: int, tick: Tick) -> list[Row]:
    """A row for each dtype: bytes of the weights, of a pass and of steps, and time."""
    batch, sizes, calls = cost.batch_of(LENGTH), {}, {}
    value_fn = problem.loss(_model("int8").config, np.arange(2, dtype=np.int32))
    for dtype in DTYPES:
        params = {"model": _model(dtype).params, "adapter": {}}
        program = jax.jit(value_fn).lower(params, batch).compile()
        calls[dtype] = functools.partial(program, params, batch)
        sizes[dtype] = {
            "weights_mb": num_bytes(params) / 1e6,
            "forward_mb": total_bytes(program) / 1e6,
        }
    for dtype, tuned in RUNS:
        recipe = Recipe(tuning=tuned, dtype=dtype)
        ready = cost.without_sentences(recipe, _model(dtype))
        planned = training.step_bytes(recipe, ready, batch)
        sizes[dtype][f"{tuned}_mb"] = planned / 1e6
    seconds = take_turns(calls, turns, tick)
    return [
        {
            "dtype": dtype,
            **sizes[dtype],
            "forward_s": float(np.median(seconds[dtype])),
            "to_float32": median_ratio(seconds[dtype], seconds["float32"]),
            **device_line(),
        }
        for dtype in DTYPES
    ]


@functools.lru_cache(maxsize=1)  # for all seeds; another dtype's is then let go
def _ready(dtype: str, tuned: str, full: bool) -> tuple[Problem, Floors | None]:
    """The problem, and the untuned model's scores where its layers ran already."""
    recipe, size = recipe_of(dtype, tuned, full, 0), FULL if full else QUICK
    splits = problem.load_splits(Source())
    splits = splits._replace(
        validation=splits.validation[: size.validation], test=splits.test[: size.test]
    )
    ready = problem.make(recipe, _model(dtype), splits)
    return ready, problem.floors(ready) if recipe.after_text else None


def run(dtype: str, tuned: str, full: bool, seed: int, tick: Tick) -> list[Row]:
    """A row: test scores untuned and after a run."""
    recipe = recipe_of(dtype, tuned, full, seed)
    ready, floors = _ready(dtype, tuned, full)
    ready = problem.with_seed(ready, recipe)
    _, test = training.train_and_test(recipe, ready, tick)
    untuned = {} if floors is None else floors._asdict()
    return [
        {
            "dtype": dtype,
            "tuned": tuned,
            "seed": seed,
            "steps": recipe.steps,
            **{f"floor_{name}": value for name, value in untuned.items()},
            "accuracy": test.accuracy,
            "cross_entropy": test.cross_entropy,
        }
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for the passes, which take turns, and one for each run."""
    size = FULL if full else QUICK
    found: dict[str, Cell] = {"passes": functools.partial(forward_passes, size.turns)}
    for dtype, tuned in RUNS:
        for s in range(seed, seed + size.seeds):
            cell: Callable[[Tick], list[Row]]
            cell = functools.partial(run, dtype, tuned, full, s)
            found[f"{dtype}, {tuned}, seed {s}"] = cell
    return found


def _passes(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["weights_mb"].notna()]


def _runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds."""
    rows = frame[frame["tuned"].notna()]
    numbers = rows.drop(columns="seed").groupby(["dtype", "tuned"], sort=False)
    return numbers.mean(numeric_only=True).reset_index()


def tables(frame: pd.DataFrame) -> list[Table]:
    passes = [
        [
            row.dtype,
            plain(row.weights_mb),
            plain(row.forward_mb),
            plain(row.lora_mb),
            plain(row.scales_mb),
            f"{row.to_float32:.2f}",
        ]
        for row in _passes(frame).itertuples()
    ]
    runs = [
        [
            f"{row.dtype}, {row.tuned}",
            plain(100 * row.floor_accuracy),
            plain(100 * row.floor_calibrated),
            plain(row.floor_cross_entropy),
            f"{row.steps:,.0f}",
            plain(100 * row.accuracy),
            plain(row.cross_entropy),
        ]
        for row in _runs(frame).itertuples()
    ]
    memory = ["", "weights,\nMB", "forward,\nMB", "step of\nLoRA, MB"]
    memory += ["step of\nscales, MB", "time to\nfloat32"]
    scores = ["", "untuned,\n%", "calibrated,\n%", "cross-\nentropy", "steps"]
    scores += ["tuned,\n%", "cross-\nentropy"]
    title = f"Planned bytes, {cost.BATCH} sentences of {LENGTH} tokens"
    return [
        tabulate(title, memory, passes),
        tabulate("Test sentences, before and after tuning", scores, runs),
    ]


def findings(frame: pd.DataFrame) -> list[str]:
    passes = _passes(frame).set_index("dtype")[NUMBERS]
    runs = _runs(frame).set_index(["dtype", "tuned"])
    found = []
    for dtype in DTYPES[1:]:
        ratio = passes.loc[dtype] / passes.loc["float32"]
        gap = 100 * (runs.loc[(dtype, "lora")] - runs.loc[("float32", "lora")])
        found.append(
            f"{dtype}: {ratio['weights_mb']:.3f} of float32's bytes of weights,"
            f" {ratio['forward_mb']:.2f} of those planned for a forward pass,"
            f" {passes.loc[dtype, 'to_float32']:.2f} of its time;"
            f" {gap['floor_calibrated']:+.1f} points of calibrated zero-shot accuracy,"
            f" {gap['accuracy']:+.1f} after LoRA."
        )
    return found


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(8, 3), layout="constrained")
    left, right = out.subplots(1, 2)
    passes, runs = _passes(frame), _runs(frame)
    places = np.arange(len(passes))
    columns = {"weights_mb": "weights", "forward_mb": "forward", "lora_mb": "LoRA step"}
    for i, (column, label) in enumerate(columns.items()):
        left.bar(places + 0.27 * (i - 1), passes[column], 0.25, label=label)
        for bar in left.containers[-1]:
            bar.set_color(COLOURS[i])
    left.set_xticks(places, passes["dtype"])
    left.set(ylabel="planned MB")
    left.legend(frameon=False)
    names = [f"{row.dtype},\n{row.tuned}" for row in runs.itertuples()]
    right.plot(names, 100 * runs["floor_calibrated"], "_", color="0.5", ms=24)
    right.plot(names, 100 * runs["accuracy"], "o", color=COLOURS[0])
    right.set(ylabel="test accuracy, %", title="untuned (line) and tuned")
    return out


STUDY = Study("Language: precision", cells, tables, findings, figure, timed=True)
