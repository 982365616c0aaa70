"""What a zeroth-order step costs beside the forward pass: compiled bytes and time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from benchmarks.language import problem, training
from benchmarks.language.problem import Batch, Model, Problem, Source
from benchmarks.language.recipe import Recipe
from benchmarks.language.transformer import Config
from benchmarks.memory.programs import total_bytes
from benchmarks.speed.timing import take_turns
from benchmarks.study import Cell, Row, Study, Tables, Tick, bars

BATCH = 16
LENGTHS = (24, 64)  # tokens of a training sentence here, and of the longest ones
QUICK, FULL = 5, 15  # turns
RECIPES = {
    "all parameters": Recipe(tuning="all"),
    "LoRA, all layers": Recipe(tuning="lora"),
    "prompt tuning": Recipe(tuning="prompt"),
    "prefix tuning": Recipe(tuning="prefix"),
}


def shapes() -> Model:
    """The default model without its weights, enough to compile."""
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    layers, width, hidden, keys = 30, 576, 1536, 192
    parts = {name: leaf(layers, width, width) for name in "qo"}
    parts |= {name: leaf(layers, width, keys) for name in "kv"}
    parts |= {name: leaf(layers, width, hidden) for name in ("gate", "up")}
    parts |= {name: leaf(layers, width) for name in ("attention_norm", "mlp_norm")}
    parts["down"] = leaf(layers, hidden, width)
    params = {"embed": leaf(49_152, width), "norm": leaf(width), "layers": parts}
    return Model(Config(9, 3, 64, 1e-5, 1e5), params, None)


def batch_of(length: int, number: int = BATCH) -> Batch:
    """Sentences of one length; which tokens does not matter here."""
    tokens = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (number, length))
    labels = jnp.arange(number, dtype=jnp.int32) % 2
    return Batch(tokens, jnp.full(number, length - 1), labels)


def without_sentences(recipe: Recipe, of: Model) -> Problem:
    """A recipe's problem with nothing to train on; the model may be shapes alone."""
    virtual = np.arange(recipe.tokens, dtype=np.int32)
    start = lambda params: problem.start_adapter(recipe, of.config, params, virtual)
    abstract = isinstance(of.params["norm"], jax.ShapeDtypeStruct)
    adapter = jax.eval_shape(start, of.params) if abstract else start(of.params)
    return Problem(
        of.config,
        {"model": of.params, "adapter": adapter},
        *problem.trainable_and_stacked(recipe, of.params, adapter),
        np.arange(2, dtype=np.int32),
        *[batch_of(LENGTHS[0])] * 3,
    )


def compile_all(
    tuned: str, length: int, of: Model
) -> tuple[Problem, dict[str, jax.stages.Compiled]]:
    """Compiles the forward pass, a two-sided step and a step with exact gradients."""
    recipe, batch = RECIPES[tuned], batch_of(length)
    ready = without_sentences(recipe, of)
    value_fn = problem.loss(ready.config, ready.words)
    compiled = {"forward": jax.jit(value_fn).lower(ready.params, batch).compile()}
    first_order = recipe.replace(estimator="first-order")
    for name, kind in (("step", recipe), ("backprop", first_order)):
        compiled[name] = training.compiled_step(kind, ready, batch)
    return ready, compiled


@functools.cache
def model() -> Model:
    """The default one."""
    return problem.load_model(Source())


def measure(tuned: str, length: int, turns: int, tick: Tick) -> list[Row]:
    """Bytes of the three programs, times of the first two, which take turns."""
    batch, recipe = batch_of(length), RECIPES[tuned]
    ready, compiled = compile_all(tuned, length, model())
    part = training.tuned_part(recipe)
    frozen = {name: leaf for name, leaf in ready.params.items() if name != part}
    opt, _ = training.make_step(recipe, ready)
    state = jax.tree.map(jnp.copy, ready.params[part]), opt.init(ready.params)

    def step():
        nonlocal state
        *state, value = compiled["step"](*state, frozen, batch)
        return state, value

    forward = functools.partial(compiled["forward"], ready.params, batch)
    seconds = take_turns({"forward": forward, "step": step}, turns, tick)
    row = {"tuned": tuned, "tokens": length}
    row |= {name: total_bytes(program) / 1e6 for name, program in compiled.items()}
    row |= {f"{name}_ms": 1e3 * np.median(own) for name, own in seconds.items()}
    return [row]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    return {
        f"{name}, {n}": functools.partial(measure, name, n, FULL if full else QUICK)
        for name in RECIPES
        for n in LENGTHS
    }


def tables(frame: pd.DataFrame) -> Tables:
    found = frame.set_index(["tuned", "tokens"])
    found = found[["forward", "step"]].assign(
        over_forward=(found["step"] / found["forward"]).map("{:.3f}".format),
        over_backprop=found["step"] / found["backprop"],
        forward_ms=found["forward_ms"],
        over_two_forwards=found["step_ms"] / (2 * found["forward_ms"]),
    )
    return {f"A two-sided step, {BATCH} sentences: planned MB, medians of time": found}


FIGURE = functools.partial(bars, x="step", y="tuned", hue="tokens")
NO_FINDINGS = lambda frame: []
STUDY = Study("Language: cost", cells, tables, NO_FINDINGS, FIGURE, timed=True)
