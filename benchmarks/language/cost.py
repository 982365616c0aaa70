"""What a zeroth-order step costs beside the forward pass: compiled bytes and time."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.language import problem, training
from benchmarks.language.problem import Batch, Source
from benchmarks.language.recipe import Recipe
from benchmarks.language.transformer import Config
from benchmarks.memory.programs import total_bytes
from benchmarks.study import COLOURS, Cell, Row, Study, plain, tabulate

BATCH = 16
LENGTHS = (24, 64)  # tokens of a training sentence here, and of the longest ones
QUICK, FULL = 5, 15  # turns
RECIPES = {
    "all parameters": Recipe(tuning="all"),
    "LoRA, all layers": Recipe(tuning="lora"),
    "prompt tuning": Recipe(tuning="prompt"),
    "prefix tuning": Recipe(tuning="prefix"),
}


@functools.cache
def model() -> problem.Model:
    return problem.load_model(Source())


def shapes() -> problem.Model:
    """The default model without its weights, enough to compile."""
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    layers, width, hidden, keys = 30, 576, 1536, 192
    params = {
        "embed": leaf(49_152, width),
        "norm": leaf(width),
        "layers": {
            "attention_norm": leaf(layers, width),
            "q": leaf(layers, width, width),
            "k": leaf(layers, width, keys),
            "v": leaf(layers, width, keys),
            "o": leaf(layers, width, width),
            "mlp_norm": leaf(layers, width),
            "gate": leaf(layers, width, hidden),
            "up": leaf(layers, width, hidden),
            "down": leaf(layers, hidden, width),
        },
    }
    config = Config(9, 3, 64, 1e-5, 1e5)
    return problem.Model(config, params, None)


def batch_of(length: int) -> Batch:
    """Sentences of one length; which tokens does not matter here."""
    tokens = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (BATCH, length))
    labels = jnp.arange(BATCH, dtype=jnp.int32) % 2
    return Batch(tokens, jnp.full(BATCH, length - 1), labels)


def without_sentences(recipe: Recipe, of: problem.Model) -> problem.Problem:
    """A recipe's problem with nothing to train on; the model may be shapes alone."""
    virtual = np.arange(recipe.tokens, dtype=np.int32)
    start = lambda params: problem.start_adapter(recipe, of.config, params, virtual)
    first = of.params["norm"]
    abstract = isinstance(first, jax.ShapeDtypeStruct)
    adapter = jax.eval_shape(start, of.params) if abstract else start(of.params)
    return problem.Problem(
        of.config,
        {"model": of.params, "adapter": adapter},
        *problem.trainable_and_stacked(recipe, of.params, adapter),
        np.arange(2, dtype=np.int32),
        *[batch_of(LENGTHS[0])] * 3,
    )


def compile_all(
    tuned: str, length: int, of: problem.Model
) -> tuple[problem.Problem, dict[str, jax.stages.Compiled]]:
    """Compiles the forward pass, a two-sided step and a step with exact gradients."""
    recipe, batch = RECIPES[tuned], batch_of(length)
    ready = without_sentences(recipe, of)
    value_fn = problem.loss(ready.config, ready.words)
    part = training.tuned_part(recipe)
    frozen = {name: leaf for name, leaf in ready.params.items() if name != part}
    compiled = {"forward": jax.jit(value_fn).lower(ready.params, batch).compile()}
    first_order = dataclasses.replace(recipe, estimator="first-order")
    for name, kind in (("step", recipe), ("backprop", first_order)):
        opt, step = training.make_step(kind, ready)
        state = jax.eval_shape(opt.init, ready.params)
        step = jax.jit(step, donate_argnums=(0, 1))
        compiled[name] = step.lower(ready.params[part], state, frozen, batch).compile()
    return ready, compiled


def compiled_sizes(tuned: str, length: int, of: problem.Model) -> dict[str, int]:
    """Bytes of "forward", "step" and "backprop"."""
    _, compiled = compile_all(tuned, length, of)
    return {name: total_bytes(program) for name, program in compiled.items()}


def measure(tuned: str, length: int, turns: int, tick: Callable[[float], None]) -> Row:
    """A row of the study: bytes, and medians over turns."""
    batch, recipe = batch_of(length), RECIPES[tuned]
    ready, compiled = compile_all(tuned, length, model())
    part = training.tuned_part(recipe)
    frozen = {name: leaf for name, leaf in ready.params.items() if name != part}
    opt, _ = training.make_step(recipe, ready)
    state = jax.tree.map(jnp.copy, ready.params[part]), opt.init(ready.params)

    def forward():
        jax.block_until_ready(compiled["forward"](ready.params, batch))

    def step():
        nonlocal state
        *state, value = compiled["step"](*state, frozen, batch)
        jax.block_until_ready((state, value))

    seconds: dict[str, list[float]] = {"forward": [], "step": []}
    for turn in range(turns + 1):
        for name, run in (("forward", forward), ("step", step)):
            start = time.perf_counter()
            run()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
        tick((turn + 1) / (turns + 1))
    medians = {name: float(np.median(some)) for name, some in seconds.items()}
    sizes = {name: total_bytes(program) for name, program in compiled.items()}
    return {
        "tuned": tuned,
        "tokens": length,
        "forward_mb": sizes["forward"] / 1e6,
        "step_mb": sizes["step"] / 1e6,
        "backprop_mb": sizes["backprop"] / 1e6,
        "to_forward": sizes["step"] / sizes["forward"],
        "to_backprop": sizes["step"] / sizes["backprop"],
        "forward_s": medians["forward"],
        "step_s": medians["step"],
        "to_two_forwards": medians["step"] / (2 * medians["forward"]),
    }


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each thing tuned and length."""
    del seed
    turns = FULL if full else QUICK

    def cell(name: str, length: int) -> Cell:
        return lambda tick: [measure(name, length, turns, tick)]

    return {
        f"{name}, {length}": cell(name, length)
        for name in RECIPES
        for length in LENGTHS
    }


def tables(frame: pd.DataFrame) -> list[Table]:
    rows: list[list[Any]] = [
        [
            row.tuned,
            row.tokens,
            plain(row.forward_mb),
            plain(row.step_mb),
            f"{row.to_forward:.3f}",
            f"{row.to_backprop:.3f}",
            f"{row.forward_s:.3f}",
            f"{row.to_two_forwards:.2f}",
        ]
        for row in frame.itertuples()
    ]
    columns = [
        "tuned",
        "tokens",
        "forward,\nMB",
        "step,\nMB",
        "over\nforward",
        "over\nbackprop",
        "forward,\ns",
        "step over\ntwo forwards",
    ]
    title = f"A two-sided step, {BATCH} sentences (compiled bytes; medians)"
    return [tabulate(title, columns, rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    return [
        f"{name}: at most {group.to_forward.max():.3f} of the forward pass's bytes,"
        f" {group.to_backprop.min():.2f} to {group.to_backprop.max():.2f} of those of a"
        f" step with exact gradients, {group.to_two_forwards.min():.2f} to"
        f" {group.to_two_forwards.max():.2f} times two forward passes."
        for name, group in frame.groupby("tuned", sort=False)
    ]


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(7, 3.6), layout="constrained")
    axis = out.subplots()
    at = frame[frame["tokens"] == frame["tokens"].max()]
    places = np.arange(len(at))
    for i, (column, label) in enumerate(
        (
            ("forward_mb", "forward pass"),
            ("step_mb", "zeroth-order step"),
            ("backprop_mb", "step with exact gradients"),
        )
    ):
        axis.bar(
            places + 0.27 * (i - 1), at[column], 0.25, color=COLOURS[i], label=label
        )
    axis.set_xticks(places, at["tuned"])
    axis.set(ylabel="compiled bytes, MB")
    axis.legend(frameon=False)
    return out


STUDY = Study("Language: cost of a step", cells, tables, findings, figure, timed=True)
