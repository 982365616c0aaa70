"""What a run leaves: a curve as a figure, an adapter in a file."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from flax.traverse_util import flatten_dict, unflatten_dict
from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open
from safetensors.flax import load_file, save

from benchmarks import UsageError
from benchmarks.language.problem import Floors, Source
from benchmarks.language.recipe import Recipe
from benchmarks.language.transformer import Config
from benchmarks.study import COLOURS, lines

MEASURES = ("accuracy", "cross_entropy")


def curve_figure(
    curves: dict[str, pd.DataFrame],
    floors: Floors,
    marks: dict[str, dict[str, float]] | None = None,
) -> Figure:
    """Accuracy and cross-entropy on validation sentences against forward passes.

    Rows of one curve with the same passes are seeds. A dot is what a curve has on the
    test sentences at the end, where columns test_... say so; marks are scores there of
    what has no curve.
    """
    frame = pd.concat(curves, names=["run", None]).reset_index("run")
    frame = frame.melt([*{"run", "passes", *frame} - {*MEASURES}], MEASURES, "measure")
    out = lines(frame, x="passes", y="value", hue="run", col="measure", marker=None)
    zero_shot = {"zero-shot": floors._asdict()}
    zero_shot["calibrated"] = {"accuracy": floors.calibrated}
    levels = zero_shot | (marks or {})
    for axes, measure in zip(out.axes, MEASURES, strict=True):
        axes.set(title=measure.replace("_", "-"), xlabel="forward passes", ylabel="")
        for colour, (label, level) in zip(COLOURS[::-1], levels.items(), strict=False):
            if measure in level:
                axes.axhline(level[measure], color=colour, ls=":", label=label)
        for colour, curve in zip(COLOURS, curves.values(), strict=False):
            if f"test_{measure}" in curve:
                on_test = curve[f"test_{measure}"].mean()
                axes.plot(curve["passes"].max(), on_test, "o", color=colour)
    out.axes[0].legend(frameon=False, fontsize=8)
    out.legends.clear()  # seaborn's, which lacks the levels
    out.tight_layout()
    return out


def save_adapter(
    recipe: Recipe, source: Source, config: Config, tuned: dict[str, Any]
) -> bytes:
    """A safetensors file that :func:`load_adapter` reads.

    ``tuned`` is {"adapter": ...}, with "model" where all parameters were tuned.
    """
    about = source._replace(data=None, cache=None)
    metadata = {
        "recipe": recipe.model_dump_json(),
        "source": json.dumps(about),
        "config": json.dumps(config),
    }
    return save(flatten_dict(tuned, sep="."), metadata)


def load_adapter(path: Path) -> tuple[Recipe, Source, Config, dict[str, Any]]:
    """Reads what :func:`save_adapter` wrote."""
    try:
        with safe_open(path, framework="flax") as opened:
            metadata = opened.metadata() or {}
        about = {name: json.loads(text) for name, text in metadata.items()}
        recipe, tuned = Recipe(**about["recipe"]), unflatten_dict(load_file(path), ".")
        source, config = Source(*about["source"]), Config(*about["config"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is no adapter of this command: {error}") from None
    return recipe, source, config, {"adapter": {}} | tuned
