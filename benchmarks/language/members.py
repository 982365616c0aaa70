"""Members of one adapter as one batch: a sentence's text is run once for all of them.

Cores act on the template's words alone, so what comes before these is the same for all
members of a step. Two settings: the text is run in the step, and it was run before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.language import problem, tasks
from benchmarks.language.problem import Batch, Model, Source
from benchmarks.language.recipe import PRESETS, matrix_names
from benchmarks.language.tasks import Sentence
from benchmarks.language.transformer import Adapter, Params, Text
from benchmarks.memory.programs import total_bytes
from benchmarks.speed.timing import device_line, median_ratio, take_turns
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, plain, tabulate

MEMBERS = 16
BATCH = 16  # sentences
LENGTH = 24  # tokens of each
QUICK, FULL = 3, 15  # turns
SETTINGS = ("text in the step", "text run before")


def bases_of(layers: Params, ranks: tuple[int, int], names: Sequence[str]) -> Adapter:
    """Bases of the right shapes: which directions they are costs nothing."""

    def basis(number, inputs, outputs):
        a, b = (number, inputs, ranks[0]), (number, outputs, ranks[1])
        return {"a": jnp.full(a, 0.01), "b": jnp.full(b, 0.01)}

    return {name: basis(*layers[name].shape) for name in names}


def programs(model: Model) -> tuple[dict[str, Callable[..., jax.Array]], Any]:
    """(In each setting the losses f[M] of members, cores of M members -> arguments)."""
    config, params, tokenizer = model
    recipe = PRESETS["cores-zo"][1]
    names, words = matrix_names(recipe), tasks.word_ids(tokenizer)
    bottom = len(params["layers"]["q"]) - recipe.top
    end = len(tasks.template_end(tokenizer))
    # What the sentences say costs nothing either: all have as many tokens.
    same = Sentence(" film" * (2 * LENGTH), 1)
    some = tasks.encode(tokenizer, [same] * BATCH, LENGTH, truncate=True)
    ends = np.tile(np.arange(LENGTH - end, LENGTH, dtype=np.int32), (BATCH, 1))
    upper = {**params, "layers": jax.tree.map(lambda x: x[bottom:], params["layers"])}
    ranks = (1 if recipe.predicting else recipe.rank, recipe.rank)
    bases = bases_of(upper["layers"], ranks, names)
    value_fn = problem.loss(config, words)

    def before(params):
        states, own = problem.run_before(
            config, params, some.tokens, ends, bottom=bottom
        )
        text = Text(own["k"], own["v"], jnp.full(BATCH, LENGTH - end, jnp.int32))
        return Batch(states, jnp.full(BATCH, end - 1), jnp.asarray(some.labels), text)

    def after(members, bases, upper, params, batch):
        del params
        adapter = lambda cores: {"cores": cores, "bases": bases}
        of = lambda cores: value_fn({"model": upper, "adapter": adapter(cores)}, batch)
        return jax.vmap(of)(members)

    def in_step(members, bases, upper, params, batch):
        del batch
        return after(members, bases, upper, params, before(params))

    batch = jax.jit(before)(params)

    def arguments(members):
        shape = (members, recipe.top, *ranks)
        cores = {name: jnp.full(shape, 0.01) for name in names}
        return cores, bases, upper, params, batch

    return dict(zip(SETTINGS, (in_step, after), strict=True)), arguments


def measure(model: Model, turns: int, tick: Tick) -> list[Row]:
    """A row for each setting: one member and many, their time and bytes."""
    found, arguments = programs(model)
    compiled, calls = {}, {}
    for name, losses in found.items():
        for number in (1, MEMBERS):
            given = arguments(number)
            # An argument that is not used is not held either.
            program = jax.jit(losses).lower(*given).compile()
            compiled[name, number] = program
            calls[name, number] = functools.partial(program, *given)
    seconds = take_turns(calls, turns, tick)
    return [
        {
            "setting": name,
            "one_s": float(np.median(seconds[name, 1])),
            "time": median_ratio(seconds[name, MEMBERS], seconds[name, 1]),
            "one_mb": total_bytes(compiled[name, 1]) / 1e6,
            "bytes": total_bytes(compiled[name, MEMBERS])
            / total_bytes(compiled[name, 1]),
            **device_line(),
        }
        for name in SETTINGS
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """One cell: programs that are compared take turns."""
    del seed
    turns = FULL if full else QUICK
    return {"members": lambda tick: measure(problem.load_model(Source()), turns, tick)}


def tables(frame: pd.DataFrame) -> list[Table]:
    rows = [
        [
            row.setting,
            plain(row.one_s),
            f"{row.time:.2f}",
            plain(row.one_mb),
            f"{row.bytes:.3f}",
        ]
        for row in frame.itertuples()
    ]
    columns = ["", "one member,\ns", f"{MEMBERS} over\none"]
    columns += ["one member,\nMB", f"{MEMBERS} over\none"]
    title = f"Losses of {BATCH} sentences of {LENGTH} tokens"
    return [tabulate(title, columns, rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    return [
        f"{row.setting}: {MEMBERS} members take {row.time:.2f} times the time of one"
        f" and {row.bytes:.2f} times its bytes."
        for row in frame.itertuples()
    ]


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(5, 2), layout="constrained")
    axis = out.subplots()
    axis.barh(frame["setting"], frame["time"], color=COLOURS[0])
    axis.axvline(MEMBERS, color="0.5", ls=":")
    axis.set(xlabel=f"time of {MEMBERS} members over that of one")
    axis.invert_yaxis()
    return out


STUDY = Study("Language: members", cells, tables, findings, figure, timed=True)
