"""Wall time of ZoAR beside a PyTorch loop in the manner of the paper's code.

Both run the paper's settings on the same cores and take turns; a ratio is the median of
the ratios turn by turn. Needs PyTorch.
"""

import functools

import jax
import optax
import pandas as pd
from matplotlib.figure import Figure

import zojax
from benchmarks.functions import FUNCTIONS
from benchmarks.rivals import zoar_torch
from benchmarks.speed.timing import bars, timed_rows, training, where
from benchmarks.study import Cell, Row, Study, Tables, Tick
from benchmarks.synthetic.runs import NUM_DIRECTIONS, PAPER_STEP, SMOOTHING
from zojax.perturbations import gaussian, rademacher

HISTORY, DIMENSION = 5, 10_000
STEPS, TORCH_STEPS, REPEATS = 200, 40, 7
LOOP = "PyTorch, a direction at a time"
OURS = "zojax, Rademacher"


def _torch(step, function: str, num_records: int):
    run = zoar_torch.start(DIMENSION, num_records, 0)
    f = zoar_torch.FUNCTIONS[function]

    def program():
        for _ in range(TORCH_STEPS):
            step(run, f, NUM_DIRECTIONS, SMOOTHING, PAPER_STEP)

    return program, TORCH_STEPS


def programs(function: str, seed: int) -> dict:
    """Name: (program, steps that it takes)."""

    def ours(sampler, history_size):
        settings = {"key": seed, "history_size": history_size, "sampler": sampler}
        zoar = zojax.zoar(SMOOTHING, NUM_DIRECTIONS, **settings)
        opt = optax.chain(zoar, zojax.radazo(PAPER_STEP))
        run = jax.jit(training(opt, FUNCTIONS[function], STEPS))
        x = jax.random.normal(jax.random.key(seed), (DIMENSION,))
        return functools.partial(run, x), STEPS

    pairs = (HISTORY + 1) * NUM_DIRECTIONS
    return {
        LOOP: _torch(zoar_torch.loop_step, function, pairs),
        "PyTorch, batched": _torch(zoar_torch.batched_step, function, HISTORY + 1),
        "zojax, gaussian": ours(gaussian(), HISTORY),
        OURS: ours(rademacher(), HISTORY),
        "zojax, mean baseline, Rademacher": ours(rademacher(), 0),
    }


def measure(function: str, seed: int, tick: Tick) -> list[Row]:
    """The programs take turns."""
    rows = timed_rows(programs(function, seed), REPEATS, tick, {"ratio": LOOP})
    return [{"function": function, "program": n, **row} for n, row in rows.items()]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each of the paper's four functions, whose size is small."""
    return {f: functools.partial(measure, f, seed) for f in zoar_torch.FUNCTIONS}


def tables(frame: pd.DataFrame) -> Tables:
    """Milliseconds, and their ratios."""
    settings = f"ZoAR, d = {DIMENSION:,}, K = {NUM_DIRECTIONS}, N = {HISTORY}"
    axes = {"index": "program", "columns": "function", "sort": False}
    return {
        f"ms an iteration; {settings}": frame.pivot_table("milliseconds", **axes),
        "over the PyTorch loop's": frame.pivot_table("ratio", **axes),
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """The span over functions."""
    ratios = frame.groupby("program")["ratio"].agg(["min", "max"])
    span = lambda name: "{:.2f} to {:.2f}".format(*ratios.loc[name])
    return [
        where(frame, REPEATS),
        f"An iteration of ZoAR takes {span(OURS)} of the PyTorch loop's time with"
        f" Rademacher directions, {span('zojax, gaussian')} with gaussian ones; PyTorch"
        f" with batched directions {span('PyTorch, batched')}. The PyTorch loops spend"
        " one query more a step, f(theta), to log it, as the paper's code does.",
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """A bar for each program."""
    return bars(frame, "milliseconds", "program", "function")


STUDY = Study(
    "Wall time beside a PyTorch loop", cells, tables, findings, figure, timed=True
)
