"""The training loop: steps, validation, checkpoints for a run that goes on."""

import signal
import threading
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
from jax.stages import Compiled

import zojax
from benchmarks import UsageError
from benchmarks.language import head
from benchmarks.language.problem import Batch, Problem, evaluate, loss, states_of
from benchmarks.language.recipe import SAMPLERS, Recipe, batch_at, optimizer, queries
from benchmarks.study import Tick

REPEATS = 16  # estimates that a learning rate is found along


class Run(NamedTuple):
    """A run between two steps: all that a resumed one needs."""

    tuned: Any  # the trainable params
    opt_state: Any
    step: int = 0
    losses: tuple[float, ...] = ()  # of the steps since the last validation
    seconds: float = 0.0  # of training and validation
    curve: tuple[dict[str, Any], ...] = ()  # a row for each validation


def tuned_part(recipe: Recipe) -> str:
    """Its name in the params."""
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
    opt = optimizer(recipe, problem.params, problem.trainable, problem.stacked, key)
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


def compiled_step(recipe: Recipe, problem: Problem, batch: Batch) -> Compiled:
    """The step for a batch of this size; the problem may be shapes alone."""
    part = tuned_part(recipe)
    frozen = {name: leaf for name, leaf in problem.params.items() if name != part}
    opt, step = make_step(recipe, problem)
    state = jax.eval_shape(opt.init, problem.params)
    step = jax.jit(step, donate_argnums=(0, 1))
    return step.lower(problem.params[part], state, frozen, batch).compile()


def start(recipe: Recipe, problem: Problem) -> Run:
    """Returns the run before its first step."""
    opt, _ = make_step(recipe, problem)
    tuned = problem.params[tuned_part(recipe)]
    if recipe.tuning != "all":  # a copy of a whole model would double its memory
        tuned = jax.tree.map(jnp.copy, tuned)
    return Run(tuned, opt.init(problem.params))


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
    at = jax.jit(lambda x, frozen, batch: objective({**frozen, part: x}, batch))

    def value_fn(tuned, query_key):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(query_key)))
        rows = rng.permutation(len(problem.train.labels))[: recipe.batch]
        return at(tuned, frozen, problem.train.take(rows))

    tuned = problem.params[part]
    flags = jax.tree.broadcast(problem.trainable[part], tuned)
    return zojax.diagnose(
        value_fn,
        tuned,
        recipe.smoothing,
        recipe.directions,
        key=jax.random.fold_in(jax.random.key(recipe.seed), 3),
        sampler=zojax.perturbations.restrict(SAMPLERS[recipe.sampler](), flags),
        num_repeats=REPEATS,
        num_smoothings=0,
    )


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Yields what Ctrl-C sets, so that a step is not cut off; a second one does."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def handler(number, frame):
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def train(
    recipe: Recipe,
    problem: Problem,
    run: Run,
    *,
    every: int = 50,
    tick: Callable[[Run], None] = lambda run: None,
    keep: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Runs the remaining steps.

    With tuning "all" the problem's params are used up. Every so many steps it is
    validated and given to ``keep``, as before a KeyboardInterrupt; ``tick`` is called
    after each step.
    """
    name = tuned_part(recipe)
    frozen = {part: x for part, x in problem.params.items() if part != name}
    step_fn = jax.jit(make_step(recipe, problem)[1], donate_argnums=(0, 1))
    number, passes = len(problem.train.labels), queries(recipe)
    began = time.perf_counter() - run.seconds

    def validated(run: Run) -> Run:
        params = {**frozen, name: run.tuned}
        score = evaluate(problem, params, problem.validation)
        seconds = time.perf_counter() - began
        row = {
            "step": run.step,
            "passes": run.step * passes,
            "seconds": round(seconds, 2),
            "loss": float(np.mean(run.losses)) if run.losses else None,
            "accuracy": score.accuracy,
            "cross_entropy": score.cross_entropy,
        }
        return run._replace(losses=(), curve=(*run.curve, row), seconds=seconds)

    with _interruptible() as interrupted:
        if not run.curve:
            run = validated(run)
        while run.step < recipe.steps:
            batch = problem.train.take(batch_rows(recipe, number, run.step))
            tuned, opt_state, value = step_fn(run.tuned, run.opt_state, frozen, batch)
            losses, seconds = (*run.losses, float(value)), time.perf_counter() - began
            run = Run(tuned, opt_state, run.step + 1, losses, seconds, run.curve)
            if run.step % every == 0 or run.step == recipe.steps:
                run = validated(run)
            tick(run)
            if interrupted.is_set() or not run.losses:
                keep(run)
            if interrupted.is_set():
                raise KeyboardInterrupt
    return run


def with_last_head(recipe: Recipe, problem: Problem, run: Run) -> dict[str, Any]:
    """A run's params, with a head on the tuned model's states where it ends in one."""
    params = problem.params | {tuned_part(recipe): run.tuned}
    if recipe.head != "after":
        return params
    read = states_of(problem.config, params, problem.train)
    fitted = head.fit(*read, problem.train.labels, problem.bottom)
    return params | {"adapter": run.tuned | {"head": fitted}}


def trained(
    recipe: Recipe, problem: Problem, tick: Tick, every: int | None = None
) -> tuple[Run, dict[str, Any]]:
    """(The finished run, params with its last head), from the start to the end."""
    share = lambda run: tick(run.step / recipe.steps)
    every = every or recipe.steps
    run = train(recipe, problem, start(recipe, problem), every=every, tick=share)
    return run, with_last_head(recipe, problem, run)


# -- checkpoints -----------------------------------------------------------------------


def _leaves(run: Run) -> list[jax.Array]:
    """In order, not by name: states of optax hold nodes without leaves.

    Orbax refuses empty ones, which hold nothing to restore.
    """
    return [leaf for leaf in jax.tree.leaves(run[:2]) if leaf.size]


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def save(folder: Path, run: Run) -> None:
    """Saves a run in a folder, with orbax; the last one stays."""
    leaves = ocp.args.StandardSave(_leaves(run))
    rest = ocp.args.JsonSave(run._asdict() | {"tuned": None, "opt_state": None})
    with _manager(folder) as manager:
        if manager.latest_step() != run.step:
            args = ocp.args.Composite(leaves=leaves, rest=rest)
            manager.save(run.step, args=args, force=True)


def restore(folder: Path, like: Run) -> Run:
    """The run that a folder holds, or ``like``, which gives its structure."""
    if not folder.is_dir():
        return like
    # Shapes alone: a whole model is not held twice.
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in _leaves(like)]
    wanted = ocp.args.Composite(
        leaves=ocp.args.StandardRestore(shapes), rest=ocp.args.JsonRestore()
    )
    try:
        with _manager(folder) as manager:
            if manager.latest_step() is None:
                return like
            found = manager.restore(manager.latest_step(), args=wanted)
    except (ValueError, OSError, KeyError, TypeError) as error:
        line = (str(error).strip().splitlines() or ["no message"])[0]
        raise UsageError(f"cannot resume: {folder} is not readable: {line}") from None
    restored = iter(found["leaves"])
    refilled = lambda leaf: next(restored) if leaf.size else leaf
    tuned, opt_state = jax.tree.map(refilled, (like.tuned, like.opt_state))
    return Run(**found["rest"] | {"tuned": tuned, "opt_state": opt_state})
