"""The training loop: steps, validation, checkpoints for a run that goes on."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import zojax
from benchmarks import UsageError
from benchmarks.language import head
from benchmarks.language.problem import (
    Batch,
    Problem,
    Score,
    evaluate,
    loss,
    states_of,
)
from benchmarks.language.recipe import (
    Recipe,
    batch_at,
    optimizer,
    queries,
    sampler_of,
)
from benchmarks.memory.programs import total_bytes

__all__ = [
    "Progress",
    "Run",
    "batch_rows",
    "forget",
    "make_step",
    "restore",
    "start",
    "step_bytes",
    "suggest_rate",
    "train",
    "train_and_test",
    "with_last_head",
]

KEEP_EVERY = 30.0  # seconds between checkpoints
REPEATS = 16  # estimates that a learning rate is found along


class Run(NamedTuple):
    """A run between two steps: all that a resumed one needs."""

    tuned: Any  # the trainable params
    opt_state: Any
    step: int
    losses: list[float]  # of the steps since the last validation
    seconds: float  # of training and validation
    curve: list[dict[str, float]]  # a row for each validation


class Progress(NamedTuple):
    """What is shown while a run goes on."""

    step: int
    loss: float  # mean since the last validation, at the perturbed points
    accuracy: float  # of the last validation
    tokens_per_second: float  # through the model in forward passes


def tuned_part(recipe: Recipe) -> str:
    return "model" if recipe.tuning == "all" else "adapter"


def make_step(
    recipe: Recipe, problem: Problem, value_fn: Callable[..., jax.Array] | None = None
) -> tuple[optax.GradientTransformationExtraArgs, Callable]:
    """Returns (the optax chain, a step to be jitted with tuned and state donated).

    step(tuned, opt_state, frozen, batch) -> (tuned, opt_state, loss); the loss of a
    zeroth-order step is the mean of its queries. ``value_fn`` takes the place of the
    recipe's objective.
    """
    name = tuned_part(recipe)
    key = jax.random.fold_in(jax.random.key(recipe.seed), 2)
    opt = optimizer(
        recipe, problem.params, problem.trainable, key, stacked=problem.stacked
    )
    if value_fn is None:
        value_fn = loss(problem.config, problem.words, recipe.objective)

    def first_order(params, batch):
        part = lambda tuned: value_fn({**params, name: tuned}, batch)
        value, gradient = jax.value_and_grad(part)(params[name])
        zeros = jax.tree.map(jnp.zeros_like, params)
        return value, {**zeros, name: gradient}

    def step(tuned, opt_state, frozen, batch):
        params = {**frozen, name: tuned}
        if recipe.estimator == "first-order":
            value, gradient = first_order(params, batch)
            updates, opt_state = opt.update(gradient, opt_state, params)
        else:
            updates, opt_state = opt.update(
                None, opt_state, params, value_fn=value_fn, batch=batch
            )
            value = optax.tree.get(opt_state, "query_mean")
        return optax.apply_updates(tuned, updates[name]), opt_state, value

    return opt, step


def start(recipe: Recipe, problem: Problem) -> Run:
    """Returns the run before its first step."""
    opt, _ = make_step(recipe, problem)
    tuned = problem.params[tuned_part(recipe)]
    if recipe.tuning != "all":  # a copy of a whole model would double its memory
        tuned = jax.tree.map(jnp.copy, tuned)
    return Run(tuned, opt.init(problem.params), 0, [], 0.0, [])


def batch_rows(recipe: Recipe, number: int, step: int) -> np.ndarray:
    """The sentences of a step, i[batch]: epochs in an order that the seed names."""
    size, late = batch_at(recipe, step), ()
    if size != recipe.batch:  # epochs of their own
        step, late = step - -(-recipe.steps // 2), (1,)
    epoch, i = divmod(step, number // size)
    order = np.random.default_rng([recipe.seed, epoch, *late]).permutation(number)
    return order[i * size : (i + 1) * size]


def suggest_rate(recipe: Recipe, problem: Problem) -> zojax.Diagnosis:
    """What :func:`zojax.diagnose` says of the start; each direction has its batch."""
    part = tuned_part(recipe)
    frozen = {name: leaf for name, leaf in problem.params.items() if name != part}
    objective = loss(problem.config, problem.words, recipe.objective)

    @jax.jit
    def at(tuned, frozen, batch):
        return objective({**frozen, part: tuned}, batch)

    def value_fn(tuned, query_key):
        words = np.asarray(jax.random.key_data(query_key))
        number = len(problem.train.labels)
        rows = np.random.default_rng(words).permutation(number)[: recipe.batch]
        return at(tuned, frozen, on_device(problem.train, rows))

    tuned = problem.params[part]
    return zojax.diagnose(
        value_fn,
        tuned,
        recipe.smoothing,
        recipe.directions,
        key=jax.random.fold_in(jax.random.key(recipe.seed), 3),
        sampler=sampler_of(recipe, tuned, problem.trainable[part]),
        num_repeats=REPEATS,
        num_smoothings=0,
    )


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yields whether Ctrl-C was pressed; a second one stops at once."""
    pressed = False

    def handler(number, frame):
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    try:
        previous = signal.signal(signal.SIGINT, handler)
    except ValueError:  # not the main thread: nothing to catch here
        yield lambda: False
        return
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def train(
    recipe: Recipe,
    problem: Problem,
    run: Run,
    *,
    every: int = 50,
    tick: Callable[[Progress], None] = lambda progress: None,
    keep: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Runs the remaining steps.

    Args:
      recipe: its settings.
      problem: made from that recipe; with tuning "all" its params are used up.
      run: where to go on.
      every: steps between validations.
      tick: is called after each step.
      keep: is given the run now and then, and when it is interrupted.

    Returns:
      The finished run.

    Raises:
      KeyboardInterrupt: after the run was kept.
    """
    name = tuned_part(recipe)
    frozen = {part: x for part, x in problem.params.items() if part != name}
    _, step_fn = make_step(recipe, problem)
    step_fn = jax.jit(step_fn, donate_argnums=(0, 1))
    number, passes = len(problem.train.labels), queries(recipe)
    tokens = passes * problem.train.inputs.shape[1]
    began = kept = time.perf_counter()
    before = run.seconds
    elapsed = lambda: before + time.perf_counter() - began

    def validated(run: Run) -> Run:
        params = {**frozen, name: run.tuned}
        score = evaluate(problem, params, problem.validation)
        row = {
            "step": run.step,
            "passes": run.step * passes,
            "seconds": round(elapsed(), 2),
            "loss": float(np.mean(run.losses)) if run.losses else None,
            "accuracy": score.accuracy,
            "cross_entropy": score.cross_entropy,
        }
        return run._replace(losses=[], curve=[*run.curve, row], seconds=elapsed())

    with _interruptible() as interrupted:
        if not run.curve:
            run = validated(run)
        while run.step < recipe.steps:
            stepped = time.perf_counter()
            rows = batch_rows(recipe, number, run.step)
            tuned, opt_state, value = step_fn(
                run.tuned, run.opt_state, frozen, on_device(problem.train, rows)
            )
            losses = [*run.losses, float(value)]
            speed = tokens * len(rows) / (time.perf_counter() - stepped)
            run = Run(tuned, opt_state, run.step + 1, losses, elapsed(), run.curve)
            if run.step % every == 0 or run.step == recipe.steps:
                run = validated(run)
            accuracy = run.curve[-1]["accuracy"]
            tick(Progress(run.step, float(np.mean(losses)), accuracy, speed))
            stop = interrupted()
            if stop or time.perf_counter() - kept > KEEP_EVERY:
                keep(run)
                kept = time.perf_counter()
            if stop:
                raise KeyboardInterrupt
    keep(run)
    return run


def with_last_head(recipe: Recipe, problem: Problem, run: Run) -> Run:
    """The run with a head on the tuned model's states, where its recipe wants one."""
    if recipe.head != "after":
        return run
    model = problem.params["model"]
    read = states_of(problem.config, model, run.tuned, problem.train)
    fitted = head.fit(*read, problem.train.labels, problem.bottom)
    return run._replace(tuned={**run.tuned, "head": fitted})


def train_and_test(
    recipe: Recipe,
    problem: Problem,
    tick: Callable[[float], None],
    *,
    every: int | None = None,
) -> tuple[Run, Score]:
    """Trains from the start to the end, and scores what came out on the test sentences.

    Args:
      recipe: its settings.
      problem: made from that recipe; with tuning "all" its params are used up.
      tick: is called with the share of the steps that is done.
      every: steps between validations; by default the start and the end are validated.

    Returns:
      (The finished run, its score, with a last head if the recipe has one.)
    """
    run = train(
        recipe,
        problem,
        start(recipe, problem),
        every=every or recipe.steps,
        tick=lambda progress: tick(progress.step / recipe.steps),
    )
    last = with_last_head(recipe, problem, run)
    params = problem.params | {tuned_part(recipe): last.tuned}
    return run, evaluate(problem, params, problem.test)


def step_bytes(recipe: Recipe, problem: Problem, batch: Batch) -> int:
    """Planned bytes of a compiled step; the problem may be shapes alone."""
    part = tuned_part(recipe)
    frozen = {name: leaf for name, leaf in problem.params.items() if name != part}
    opt, step = make_step(recipe, problem)
    state = jax.eval_shape(opt.init, problem.params)
    step = jax.jit(step, donate_argnums=(0, 1))
    return total_bytes(step.lower(problem.params[part], state, frozen, batch).compile())


def on_device(data: Batch, rows: np.ndarray) -> Batch:
    """A batch of these rows."""
    return jax.tree.map(jnp.asarray, data.take(rows))


# -- checkpoints -----------------------------------------------------------------------


def _kept(run: Run) -> list[jax.Array]:
    """Leaves in order; orbax refuses empty ones, which hold nothing to restore."""
    leaves = jax.tree.leaves((run.tuned, run.opt_state))
    return [leaf for leaf in leaves if leaf.size]


def saver(folder: Path, settings: dict[str, Any]) -> Callable[[Run], None]:
    """Returns a function that saves a run in a folder, with orbax; the last one stays.

    Leaves are saved in order, not by name: states of optax hold nodes without leaves.
    The settings are saved beside them, for :func:`restore` to compare.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, enable_async_checkpointing=False
    )
    manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(run):
        if manager.latest_step() == run.step:
            return
        rest = run._replace(tuned=None, opt_state=None)._asdict()
        manager.save(
            run.step,
            args=ocp.args.Composite(
                leaves=ocp.args.StandardSave(_kept(run)),
                rest=ocp.args.JsonSave(rest | {"settings": settings}),
            ),
            force=True,
        )

    return save


def forget(folder: Path) -> None:
    """Removes the checkpoints of an earlier run."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise UsageError(f"cannot replace {folder}: {error.strerror}") from None


def restore(folder: Path, settings: dict[str, Any], like: Run) -> Run | None:
    """Restores the run that a folder holds, or None; ``like`` gives its structure."""
    if not folder.is_dir():
        return None
    # Shapes alone: a whole model is not held twice.
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in _kept(like)]
    try:
        with ocp.CheckpointManager(folder.absolute()) as manager:
            latest = manager.latest_step()
            if latest is None:
                return None
            found = manager.restore(
                latest,
                args=ocp.args.Composite(
                    leaves=ocp.args.StandardRestore(shapes),
                    rest=ocp.args.JsonRestore(),
                ),
            )
    except (ValueError, OSError, KeyError, TypeError) as error:
        line = (str(error).strip().splitlines() or ["no message"])[0]
        raise UsageError(f"cannot resume: {folder} is not readable: {line}") from None
    rest = found["rest"]
    if rest.pop("settings") != settings:
        raise UsageError(
            f"cannot resume: {folder} belongs to a run with other settings; drop"
            " --resume to overwrite it"
        )
    leaves, structure = jax.tree.flatten((like.tuned, like.opt_state))
    restored = iter(found["leaves"])
    tuned, opt_state = jax.tree.unflatten(
        structure, [next(restored) if leaf.size else leaf for leaf in leaves]
    )
    return Run(**rest | {"tuned": tuned, "opt_state": opt_state})
