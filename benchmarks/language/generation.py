"""Tokens per second of models that differ by factors of rank 1, beside one model."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

import zojax
from benchmarks.language import reward
from benchmarks.language.reward import BATCH, SMOOTHING, Sums
from benchmarks.memory.programs import total_bytes
from benchmarks.speed.timing import device_line, median_ratio, take_turns
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, plain, tabulate
from zojax.perturbations import low_rank

MEMBERS, TOKENS = 8, 16  # models at once; tokens of each text
QUICK, FULL = 3, 9  # turns
PLAIN, MANY = "one model", f"{MEMBERS} members of rank 1"


def measure(of: tuple[reward.Model, Sums], turns: int, tick: Tick) -> list[Row]:
    """A row for one model that writes as many texts, and one for members."""
    model, problems = of
    write = reward.writer(model, TOKENS)
    some = problems.tokens[:BATCH]
    inputs = {PLAIN: np.tile(some, (MEMBERS, 1)), MANY: some}

    def members(params, tokens):
        directions = zojax.Directions(low_rank(1), jax.random.key(0), MEMBERS)
        # A value that all texts enter, or XLA would leave some out.
        value_fn = lambda params: jnp.mean(write(params, tokens).astype(jnp.float32))
        return zojax.evaluate(value_fn, params, directions, SMOOTHING)[0]

    programs = {
        name: jax.jit(run).lower(model.params, inputs[name]).compile()
        for name, run in ((PLAIN, write), (MANY, members))
    }
    calls = {
        name: functools.partial(program, model.params, inputs[name])
        for name, program in programs.items()
    }
    seconds = take_turns(calls, turns, tick)
    return [
        {
            "program": name,
            "tokens_per_second": MEMBERS * BATCH * TOKENS / float(np.median(times)),
            "to_plain": 1 / median_ratio(times, seconds[PLAIN]),
            "megabytes": total_bytes(programs[name]) / 1e6,
            **device_line(),
        }
        for name, times in seconds.items()
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """One cell: programs that are compared take turns."""
    del seed
    turns = FULL if full else QUICK
    return {"generation": lambda tick: measure(reward.ready(), turns, tick)}


def tables(frame: pd.DataFrame) -> list[Table]:
    rows = [
        [
            row.program,
            plain(row.tokens_per_second),
            f"{row.to_plain:.2f}",
            plain(row.megabytes),
        ]
        for row in frame.itertuples()
    ]
    title = f"{MEMBERS * BATCH} texts of {TOKENS} tokens at once"
    columns = ["", "tokens/s", "to one model", "planned MB"]
    return [tabulate(title, columns, rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    share = frame.set_index("program")["to_plain"][MANY]
    return [f"{MANY} write {share:.2f} of one model's tokens per second."]


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(5, 2), layout="constrained")
    axis = out.subplots()
    axis.barh(frame["program"], frame["tokens_per_second"], color=COLOURS[0])
    axis.set(xlabel="tokens per second")
    axis.invert_yaxis()
    return out


STUDY = Study("Language: generation", cells, tables, findings, figure, timed=True)
