"""Wall time of a run against that of its evaluations, by the number of workers."""

import functools
import multiprocessing
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pandas as pd
import pebble
from matplotlib.figure import Figure

import zojax
from benchmarks.external import faults
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines

WORKERS = (1, 2, 4, 8)
SECONDS = 0.5  # of one evaluation
LIMIT = 2.0  # four times that
NUM_DIRECTIONS, DIMENSION = 16, 20
QUICK, FULL = 5, 21  # steps
KINDS = ("program", "program, faulty", "Python", "Python, faulty")


def wait(x: np.ndarray, query_id: int, *, faulty: bool) -> float:
    """What the program does, in Python."""
    if faulty:
        faults.suffer(query_id)
    time.sleep(SECONDS)
    return float(np.sum((x - 1.0) ** 2))


def command(number: int, *, faulty: bool) -> Any:
    """The program, which is told which of so many points fail and which hang."""
    found = [faults.fault_of(i) for i in range(number)] if faulty else []
    ids = [
        ",".join(str(i) for i, suffered in enumerate(found) if suffered == fault)
        for fault in ("fails", "hangs")
    ]
    program = [sys.executable, "-I", "-S", Path(__file__).with_name("program.py")]
    return zojax.external.command([*program, str(SECONDS), *ids])


def processes(workers: int, module: str) -> pebble.ProcessPool:
    """A pool; a new worker is a copy of a server that has imported the module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return pebble.ProcessPool(workers, context=context)


def ideal(number: int, workers: int, steps: int, *, faulty: bool) -> float:
    """Seconds of the evaluations alone, each step's shared out in their order.

    Without the first step, which compiles.
    """
    seconds = {None: SECONDS, "fails": 0.0, "hangs": LIMIT}
    total = 0.0
    for step in range(1, steps):
        free = np.zeros(workers)
        for i in range(step * number, (step + 1) * number):
            free[np.argmin(free)] += seconds[faults.fault_of(i) if faulty else None]
        total += float(free.max())
    return total


def measure(kind: str, workers: int, steps: int, tick: Tick) -> list[Row]:
    """One run, without its first step."""
    faulty = kind.endswith("faulty")
    if kind.startswith("program"):
        function = command(steps * NUM_DIRECTIONS, faulty=faulty)
        pool = ThreadPoolExecutor(workers)
    else:
        function = functools.partial(wait, faulty=faulty)
        pool = processes(workers, __name__)
        for future in [pool.schedule(time.sleep, [1.0]) for _ in range(workers)]:
            future.result()  # all workers are there
    ended = []

    def on_step(progress):
        ended.append(time.monotonic())
        tick(progress.step / (steps + 1))

    with pool:
        end = zojax.external.optimize(
            function,
            np.zeros(DIMENSION),
            zojax.zoar(0.05, NUM_DIRECTIONS, key=0),
            optax.adam(0.1),
            steps,
            executor=pool,
            timeout=LIMIT,
            on_step=on_step,
        )
    row = {"kind": kind, "workers": workers, "evaluations": end.num_evaluations}
    row |= {"failed": end.num_failed, "timeouts": end.num_timeouts}
    row |= {"seconds": ended[-1] - ended[0], "longest_step": max(np.diff(ended))}
    alone = ideal(NUM_DIRECTIONS, workers, steps, faulty=faulty)
    return [row | {"evaluations alone": alone, "share": alone / row["seconds"]}]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each kind and number of workers."""
    del seed  # faults and directions are always the same
    steps = FULL if full else QUICK
    return {
        f"{kind}/{workers}": functools.partial(measure, kind, workers, steps)
        for kind in KINDS
        for workers in WORKERS
    }


def tables(frame: pd.DataFrame) -> Tables:
    """By workers and kind."""
    shown = {"share": "Share of the ideal wall time", "longest_step": "Longest step, s"}
    return {
        title: frame.pivot_table(name, "workers", "kind", sort=False)
        for name, title in shown.items()
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """The least share of the ideal, by kind."""
    least = frame.groupby("kind", sort=False)["share"].min()
    said = ", ".join(f"{share:.2f} ({kind})" for kind, share in least.items())
    return [f"At least so much of the ideal wall time: {said}."]


def figure(frame: pd.DataFrame) -> Figure:
    """The share against workers."""
    return lines(frame, x="workers", y="share", hue="kind")


STUDY = Study(
    "External: wall time by workers", cells, tables, findings, figure, timed=True
)
