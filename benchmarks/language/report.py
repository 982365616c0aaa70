"""What a run leaves: a curve as CSV and figure, an adapter, a result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import pandas as pd
from matplotlib.figure import Figure

from benchmarks import UsageError
from benchmarks.language.problem import Floors, Source
from benchmarks.language.recipe import Recipe
from benchmarks.language.transformer import Config
from benchmarks.study import COLOURS

__all__ = ["curve_figure", "load_adapter", "save_adapter"]

MARKS = COLOURS[:3:-1]  # of what has no curve: other colours than those of curves


def curve_figure(
    curves: dict[str, pd.DataFrame],
    floors: Floors,
    marks: dict[str, dict[str, float]] | None = None,
) -> Figure:
    """Accuracy and cross-entropy on validation sentences against forward passes.

    Args:
      curves: frames with columns passes, accuracy, cross_entropy, by label; rows of one
        number of passes (seeds) are averaged, their range is shaded. A dot is what they
        have on the test sentences at the end, where columns test_... say so.
      floors: of the untuned model.
      marks: accuracy and cross_entropy of what has no curve, by label: on test.
    """
    out = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = out.subplots(1, 2)
    for colour, (label, frame) in zip(COLOURS, curves.items(), strict=False):
        for axis, column in ((left, "accuracy"), (right, "cross_entropy")):
            seeds = frame.groupby("passes")[column].agg(["mean", "min", "max"])
            axis.plot(seeds.index, seeds["mean"], color=colour, label=label)
            axis.fill_between(
                seeds.index, seeds["min"], seeds["max"], color=colour, alpha=0.15
            )
            if f"test_{column}" in frame:
                on_test = frame[f"test_{column}"].mean()
                axis.plot(seeds.index[-1], on_test, "o", color=colour)
    line = {"linestyle": ":", "linewidth": 1.2}
    left.axhline(floors.accuracy, color="#999999", label="zero-shot", **line)
    left.axhline(
        floors.calibrated, color="black", label="zero-shot, calibrated", **line
    )
    right.axhline(floors.cross_entropy, color="#999999", **line)
    for colour, (label, mark) in zip(MARKS, (marks or {}).items(), strict=False):
        left.axhline(mark["accuracy"], color=colour, label=label, **line)
        right.axhline(mark["cross_entropy"], color=colour, **line)
    left.set(xlabel="forward passes", ylabel="accuracy")
    right.set(xlabel="forward passes", ylabel="cross-entropy")
    left.legend(frameon=False, fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    return out


def save_adapter(
    recipe: Recipe, source: Source, config: Config, tuned: dict[str, Any]
) -> bytes:
    """A safetensors file that :func:`load_adapter` reads.

    ``tuned`` is {"adapter": ...}, with "model" where all parameters were tuned.
    """
    from safetensors.flax import save

    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tuned)
    }
    about = source._asdict() | {"data": None, "cache": None}
    metadata = {
        "recipe": json.dumps(dataclasses.asdict(recipe)),
        "source": json.dumps(about),
        "config": json.dumps(config),
    }
    return save(flat, metadata)


def load_adapter(path: Path) -> tuple[Recipe, Source, Config, dict[str, Any]]:
    """Reads what :func:`save_adapter` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="flax") as opened:
            metadata = opened.metadata() or {}
            flat = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        recipe = Recipe(**json.loads(metadata["recipe"]))
        source = Source(**json.loads(metadata["source"]))
        config = Config(*json.loads(metadata["config"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is no adapter of this command: {error}") from None
    tuned: dict[str, Any] = {"adapter": {}}
    for name, leaf in flat.items():
        *groups, last = name.split(".")
        node = tuned
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = leaf
    return recipe, source, config, tuned
