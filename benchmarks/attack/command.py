"""The command ``python -m benchmarks attack``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

import zojax
from benchmarks import UsageError, names_of, positive, whole_number
from benchmarks.attack import classifier, report
from benchmarks.attack.engine import BOUND, METHODS, attack, white_box
from benchmarks.attack.results import SETTINGS, Finished, Folder, Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the task."""
    add = parser.add_argument
    add("--images", type=whole_number(1), default=100, help="digits to attack")
    add("--queries", type=whole_number(1), default=2000, help="budget of a digit")
    add(
        "--methods",
        type=names_of("method", METHODS),
        default=",".join(METHODS),
        help="which to compare, separated by commas",
    )
    add("--smoothing", type=positive, default=0.05, help="mu")
    add("--directions", type=whole_number(2), default=10, help="K, per step")
    add(
        "--learning-rate",
        type=positive,
        default=0.003,
        help="of R-AdaZO, for all methods; the paper's 0.01 soon carries most pixels"
        " beyond the bounds",
    )
    add(
        "--start",
        choices=("zero", "normal"),
        default="zero",
        help="of the perturbation; normal, N(0, I), is the paper's",
    )
    add("--seed", type=whole_number(0), default=0, help="of training and noise")
    add("--epochs", type=whole_number(1), default=10, help="of the classifier")
    add("--output", type=Path, default=Path("results/attack"), help="folder")
    add(
        "--resume",
        action="store_true",
        help="keep the methods that the folder has; otherwise it is overwritten",
    )


def run(args: argparse.Namespace) -> None:
    """Trains the classifier, attacks it with every method and reports."""
    dearest = max(METHODS[name].cost(args.directions) for name in args.methods)
    if args.queries < dearest:
        raise UsageError(
            f"--queries must pay for one step, {dearest} with --directions"
            f" {args.directions}, got {args.queries}"
        )
    settings = {name: getattr(args, name) for name in SETTINGS}
    folder = Folder(args.output)
    folder.open(settings | {"zojax": zojax.__version__}, args.resume)
    try:
        _run(args, folder)
    except KeyboardInterrupt:
        kept = ", ".join(folder.rows()) or "no method yet"
        raise KeyboardInterrupt(
            f"kept in {folder.path}: {kept}; the same command with --resume goes on"
        ) from None


def _run(args: argparse.Namespace, folder: Folder) -> None:
    console = Console(highlight=False)
    bars = Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
    )
    with bars:
        params, held_out, correct = _victim(args, folder, bars)
        chosen = np.flatnonzero(correct)[: args.images]
        if len(chosen) < args.images:
            raise UsageError(
                f"--images must be at most {len(chosen)}, the held-out digits that the"
                f" classifier knows, got {args.images}"
            )
        images = jnp.asarray(held_out.images[chosen])
        labels, rows = held_out.labels[chosen], held_out.rows[chosen]
        targets = (labels + 1) % classifier.NUM_CLASSES
        # A key for each image: independent trials, with one noise for all methods.
        noise_key = jax.random.fold_in(jax.random.key(args.seed), 2)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(noise_key, jnp.asarray(rows))
        classify = lambda image: classifier.log_probs(params, image[None])[0]
        ceiling = white_box(classify, images, jnp.asarray(targets)).mean()

        results = folder.load(rows) if args.resume else {}
        for name in args.methods:
            method = METHODS[name]
            cost = method.cost(args.directions)
            bar = bars.add_task(method.label, total=args.queries // cost, note="steps")
            if name in results:
                bars.update(bar, completed=args.queries // cost, note="kept")
                continue

            def move(steps, state, bar=bar):
                note = f"steps, {np.mean(state.success):.0%} broken"
                bars.update(bar, completed=steps, note=note)

            state = attack(
                method,
                classify,
                images,
                jnp.asarray(targets),
                keys,
                queries=args.queries,
                smoothing=args.smoothing,
                directions=args.directions,
                learning_rate=args.learning_rate,
                start=args.start,
                on_block=move,
            )
            adversarial = np.asarray(state.adversarial)
            sizes = (adversarial - np.asarray(images)).reshape(len(images), -1)
            results[name] = Finished(
                [
                    Row(
                        name,
                        int(rows[i]),
                        int(labels[i]),
                        int(targets[i]),
                        success=bool(state.success[i]),
                        queries=int(state.queries[i]),
                        l2=float(np.linalg.norm(sizes[i])),
                        linf=float(np.abs(sizes[i]).max()),
                    )
                    for i in range(len(images))
                ],
                adversarial,
            )
            folder.store(name, results)

    asked = {name: results[name] for name in args.methods}
    _show(args, folder, console, asked, params, np.asarray(images), ceiling)


def _victim(args: argparse.Namespace, folder: Folder, bars: Progress):
    """Returns (params, held-out digits, bool[n] which of them it knows)."""
    training, held_out = classifier.load_digits()
    bar = bars.add_task("training the classifier", total=args.epochs, note="epochs")
    params = None
    if args.resume and folder.victim.exists():
        try:
            data = folder.victim.read_bytes()
            params = serialization.from_bytes(classifier.init(args.seed), data)
            bars.update(bar, completed=args.epochs, note="kept")
        except (OSError, ValueError):
            pass
    if params is None:
        params = classifier.train(
            training, args.epochs, args.seed, lambda: bars.advance(bar)
        )
        folder.save(folder.victim, serialization.to_bytes(params))
    predictions = classifier.log_probs(params, held_out.images).argmax(axis=-1)
    correct = np.asarray(predictions) == held_out.labels
    bars.console.print(
        f"Classifier: {correct.mean():.1%} of {len(correct):,} held-out digits right,"
        f" trained on {len(training.labels):,}."
    )
    return params, held_out, correct


def _show(
    args: argparse.Namespace,
    folder: Folder,
    console: Console,
    finished: dict[str, Finished],
    params: Any,
    images: np.ndarray,
    ceiling: float,
) -> None:
    results = {name: kept.rows for name, kept in finished.items()}
    names = {name: METHODS[name].label for name in results}
    costs = {name: METHODS[name].cost(args.directions) for name in results}
    console.print(report.table(results, names, costs, args.queries))
    # In a pipe each of these is one line.
    say = lambda text: console.print(text, soft_wrap=not console.is_terminal)
    say(
        f"With exact gradients, which no method above sees, {ceiling:.0%} of these"
        f" digits break within the same bounds (+-{BOUND}, target = next digit)."
    )
    say(
        "Conclusion (one classifier, one seed): "
        + report.conclusion(results, names, args.queries)
    )

    best = report.best_method(results, args.queries)
    figures = {
        folder.examples: report.examples_figure(
            _examples(finished[best], images, params), names[best], BOUND
        ),
        folder.success: report.success_figure(results, names, args.queries, ceiling),
    }
    for path, figure in figures.items():
        folder.draw(path, figure)
    written = ", ".join(map(str, (folder.csv, *figures)))
    say(f"Written: {written}")


def _examples(
    finished: Finished, images: np.ndarray, params: Any
) -> list[report.Example]:
    """The first digit of each class that was broken, with predictions."""

    def predict(batch):
        log_probs = np.asarray(classifier.log_probs(params, batch))
        return log_probs.argmax(axis=-1), np.exp(log_probs.max(axis=-1))

    (before, sure), (after, convinced) = predict(images), predict(finished.adversarial)
    first: dict[int, int] = {}
    for i, row in enumerate(finished.rows):
        if row.success:
            first.setdefault(row.label, i)
    return [
        report.Example(
            images[i, ..., 0],
            finished.adversarial[i, ..., 0],
            (int(before[i]), float(sure[i])),
            (int(after[i]), float(convinced[i])),
            finished.rows[i].queries,
        )
        for _, i in sorted(first.items())
    ]
