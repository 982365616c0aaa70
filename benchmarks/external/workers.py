"""Wall time of a run against that of its evaluations, by the number of workers."""

from __future__ import annotations

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
from rich.table import Table

import zojax
from benchmarks.external import faults
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, tabulate

WORKERS = (1, 2, 4, 8)
SECONDS = 0.5  # of one evaluation
LIMIT = 2.0  # four times that
NUM_DIRECTIONS, DIMENSION = 16, 20
QUICK, FULL = 5, 21  # steps
KINDS = ("program", "program, faulty", "Python", "Python, faulty")


def wait(x: np.ndarray, query_id: int, *, faulty: bool) -> float:
    """The same in Python, for processes that are kept."""
    if faulty:
        faults.suffer(query_id)
    time.sleep(SECONDS)
    return float(np.sum((x - 1.0) ** 2))


def faulty_ids(number: int) -> dict[str, list[int]]:
    """The points that fail and that hang, of so many."""
    found = {"fails": [], "hangs": []}
    for i in range(number):
        if fault := faults.fault_of(i):
            found[fault].append(i)
    return found


def function_of(kind: str, number: int) -> tuple[Any, str]:
    """(The function, "threads" or "processes")."""
    faulty = kind.endswith("faulty")
    if kind.startswith("Python"):
        return functools.partial(wait, faulty=faulty), "processes"
    arguments = [sys.executable, "-I", "-S", Path(__file__).with_name("program.py")]
    ids = faulty_ids(number) if faulty else {}
    listed = [",".join(map(str, found)) for found in ids.values()]
    return zojax.external.command([*arguments, str(SECONDS), *listed]), "threads"


def pool_of(kind: str, workers: int) -> Any:
    """A pool whose workers are there already, or threads."""
    if kind == "threads":
        return ThreadPoolExecutor(workers)
    # A new worker is a copy of a server that has imported what it needs.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.external.workers"])
    pool = pebble.ProcessPool(workers, context=context)
    for future in [pool.schedule(time.sleep, [1.0]) for _ in range(workers)]:
        future.result()
    return pool


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
    """One run."""
    function, pooled = function_of(kind, steps * NUM_DIRECTIONS)
    estimator = zojax.zoar(0.05, NUM_DIRECTIONS, key=0)
    args = function, np.zeros(DIMENSION), estimator, optax.adam(0.1)
    ended = []

    def on_step(progress):
        ended.append(time.monotonic())
        tick(progress.step / (steps + 1))

    with pool_of(pooled, workers) as pool:
        where = {"executor": pool, "timeout": LIMIT, "on_step": on_step}
        end = zojax.external.optimize(*args, steps, **where)
    faulty = kind.endswith("faulty")
    return [
        {
            "kind": kind,
            "workers": workers,
            "steps": steps,
            "evaluations": end.num_evaluations,
            "failed": end.num_failed,
            "timeouts": end.num_timeouts,
            "seconds": ended[-1] - ended[0],
            "ideal": ideal(NUM_DIRECTIONS, workers, steps, faulty=faulty),
            "longest_step": float(np.diff(ended).max()),
            "best": end.best_value,
        }
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each kind and number of workers."""
    del seed  # faults and directions are always the same
    steps = FULL if full else QUICK
    return {
        f"{kind}/{workers}": functools.partial(measure, kind, workers, steps)
        for kind in KINDS
        for workers in WORKERS
    }


def tables(frame: pd.DataFrame) -> list[Table]:
    """Seconds, beside those of the evaluations."""
    rows = []
    for kind, part in frame.groupby("kind", sort=False):
        rows.append([kind, *[""] * 6])
        for row in part.itertuples():
            rows.append(
                [
                    f"  {row.workers}",
                    row.evaluations,
                    f"{row.failed} ({row.timeouts})",
                    f"{row.seconds:.1f}",
                    f"{row.ideal:.1f}",
                    f"{row.ideal / row.seconds:.2f}",
                    f"{row.longest_step:.1f}",
                ]
            )
    columns = ["workers", "points", "failed\n(late)", "seconds", "evaluations\nalone"]
    columns += ["share", "longest\nstep, s"]
    title = f"Evaluations of {SECONDS} s, {NUM_DIRECTIONS} a step, limit {LIMIT} s"
    table = tabulate(title, columns, rows)
    table.caption = "The first step, which compiles, is left out of the seconds."
    return [table]


def findings(frame: pd.DataFrame) -> list[str]:
    """The least share of the ideal, by kind."""
    out = []
    for kind, part in frame.groupby("kind", sort=False):
        share = part["ideal"] / part["seconds"]
        least = part.loc[share.idxmin()]
        out.append(
            f"{kind}: at least {share.min():.2f} of the ideal wall time"
            f" ({least['workers']} workers)."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    """Seconds against workers."""
    out = Figure(figsize=(5.5, 3.8), layout="constrained")
    axis = out.subplots()
    groups = frame.groupby("kind", sort=False)
    for colour, (kind, part) in zip(COLOURS, groups, strict=False):
        axis.plot(part["workers"], part["seconds"], "o-", color=colour, label=kind)
        axis.plot(part["workers"], part["ideal"], ":", color=colour)
    ticks = sorted(set(frame["workers"]))
    axis.set(xscale="log", yscale="log", xlabel="workers", ylabel="seconds")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_title("wall time; dotted: of the evaluations alone")
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return out


STUDY = Study(
    "External: wall time by workers", cells, tables, findings, figure, timed=True
)
