"""Wall time of ZoAR beside a PyTorch loop in the manner of the paper's code.

Both run the paper's settings on the same cores and take turns; a ratio is the median of
the ratios turn by turn. Needs PyTorch.
"""

from __future__ import annotations

import functools
import statistics

import jax
import optax
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

import zojax
from benchmarks.functions import FUNCTIONS
from benchmarks.rivals import zoar_torch
from benchmarks.speed import median_ratio, take_turns, training
from benchmarks.study import COLOURS, Cell, Row, Study, tabulate
from benchmarks.synthetic.runs import NUM_DIRECTIONS, PAPER_STEP, SMOOTHING
from zojax.perturbations import gaussian, rademacher

HISTORY, DIMENSION = 5, 10_000
STEPS, TORCH_STEPS, REPEATS = 200, 40, 7
LOOP = "PyTorch, a direction at a time"
OURS = "zojax, Rademacher"


def _torch_program(step, function: str, num_records: int):
    run = zoar_torch.start(DIMENSION, num_records, 0)
    f = zoar_torch.FUNCTIONS[function]

    def program():
        for _ in range(TORCH_STEPS):
            step(run, f, NUM_DIRECTIONS, SMOOTHING, PAPER_STEP)

    return program


def programs(function: str, seed: int) -> dict:
    """Name: (program, steps that it takes)."""

    def ours(sampler, history_size):
        opt = optax.chain(
            zojax.zoar(
                SMOOTHING,
                NUM_DIRECTIONS,
                key=seed,
                history_size=history_size,
                sampler=sampler,
            ),
            zojax.radazo(PAPER_STEP),
        )
        run = jax.jit(training(opt, FUNCTIONS[function], STEPS))
        x = jax.random.normal(jax.random.key(seed), (DIMENSION,))
        return functools.partial(run, x), STEPS

    pairs = (HISTORY + 1) * NUM_DIRECTIONS
    return {
        LOOP: (_torch_program(zoar_torch.loop_step, function, pairs), TORCH_STEPS),
        "PyTorch, batched": (
            _torch_program(zoar_torch.batched_step, function, HISTORY + 1),
            TORCH_STEPS,
        ),
        "zojax, gaussian": ours(gaussian(), HISTORY),
        OURS: ours(rademacher(), HISTORY),
        "zojax, mean baseline, Rademacher": ours(rademacher(), 0),
    }


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each of the paper's four functions."""
    del full  # the paper's size is small

    def cell(function):
        def run(tick) -> list[Row]:
            timed = programs(function, seed)
            seconds = take_turns({n: p for n, (p, _) in timed.items()}, REPEATS)
            a_step = {
                name: [t / timed[name][1] for t in times]
                for name, times in seconds.items()
            }
            tick(1.0)
            return [
                {
                    "function": function,
                    "program": name,
                    "milliseconds": 1e3 * statistics.median(times),
                    "ratio": median_ratio(times, a_step[LOOP]),
                }
                for name, times in a_step.items()
            ]

        return run

    return {name: cell(name) for name in zoar_torch.FUNCTIONS}


def tables(frame: pd.DataFrame) -> list[Table]:
    settings = f"ZoAR, d = {DIMENSION:,}, K = {NUM_DIRECTIONS}, N = {HISTORY}"
    titles = {
        "milliseconds": f"ms an iteration; {settings}",
        "ratio": "over the PyTorch loop's",
    }
    out = []
    for column, title in titles.items():
        cell = frame.pivot(index="program", columns="function", values=column)
        functions = list(dict.fromkeys(frame["function"]))
        rows = [
            [name, *(f"{cell.loc[name, f]:.2f}" for f in functions)]
            for name in dict.fromkeys(frame["program"])
        ]
        out.append(tabulate(title, ["", *functions], rows))
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    def span(name):
        ratios = frame.loc[frame["program"] == name, "ratio"]
        return f"{ratios.min():.2f} to {ratios.max():.2f}"

    return [
        f"An iteration of ZoAR takes {span(OURS)} of the PyTorch loop's time with"
        f" Rademacher directions, {span('zojax, gaussian')} with gaussian ones; PyTorch"
        f" with batched directions {span('PyTorch, batched')}. The PyTorch loops spend"
        " one query more a step, f(theta), to log it, as the paper's code does."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(8, 4), layout="constrained")
    axis = out.subplots()
    functions = list(dict.fromkeys(frame["function"]))
    names = list(dict.fromkeys(frame["program"]))
    for i, (colour, name) in enumerate(zip(COLOURS, names, strict=False)):
        part = frame[frame["program"] == name].set_index("function")
        axis.bar(
            [j + (i - len(names) / 2 + 0.5) * 0.15 for j in range(len(functions))],
            part.loc[functions, "milliseconds"],
            width=0.15,
            color=colour,
            label=name,
        )
    axis.set_xticks(range(len(functions)), functions)
    axis.set(ylabel="ms an iteration", yscale="log")
    axis.grid(axis="y", alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    return out


STUDY = Study(
    "Wall time beside a PyTorch loop", cells, tables, findings, figure, timed=True
)
