"""The peak memory of a process that takes steps, less what it holds before them.

Each cell is a fresh process: the resident memory on a CPU, the device's own count where
JAX gives one. It says whether XLA's plan is what a machine has to have: scratch memory
of the libraries that a program calls is not in the plan.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

import benchmarks
from benchmarks import UsageError
from benchmarks.memory.programs import LAZY, chunk_label
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, tabulate

# Problem: sizes, quick and full; large enough that a process's own needs are little.
SIZES = {"vector": (10_000_000, 40_000_000), "layers": (1024, 2048)}
# (estimator, K, chunk_size)
CASES = (
    ("two_point", 8, None),
    ("two_point", 8, 1),
    ("zoar, sums", 8, 1),
    ("zoar, replay", 8, 1),
    ("dap", 8, 1),
    (LAZY, 8, None),
    (LAZY, 1, 1),
)


def run_child(request: dict) -> dict:
    """What benchmarks.memory.child prints, from a process of its own."""
    root = str(Path(benchmarks.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory.child", json.dumps(request)],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(paths),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            # glibc: freed buffers go back at once, so that the peak is of what is used.
            "MALLOC_MMAP_THRESHOLD_": str(2**20),
        },
    )
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"{request} ended with {found.returncode}: {last}")
    return json.loads(found.stdout.splitlines()[-1])


def measure(
    problem: str,
    size: int,
    estimator: str,
    num_directions: int,
    chunk_size: int | None,
    tick: Tick,
) -> list[Row]:
    """One row, from a fresh process."""
    tick(0.0)
    found = run_child(
        {
            "problem": problem,
            "size": size,
            "estimator": estimator,
            "num_directions": num_directions,
            "chunk_size": chunk_size,
        }
    )
    case = {
        "estimator": estimator,
        "num_directions": num_directions,
        "chunk": chunk_label(chunk_size),
    }
    return [case | found]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each problem and case."""
    del seed  # memory does not depend on the numbers
    return {
        f"{problem}/{name}/{k}/{chunk or 'all'}": functools.partial(
            measure, problem, sizes[full], name, k, chunk
        )
        for problem, sizes in SIZES.items()
        for name, k, chunk in CASES
    }


def _labels(frame: pd.DataFrame) -> list[str]:
    return [
        f"{row['estimator']}, K = {row['num_directions']}, {row['chunk']}"
        for _, row in frame.iterrows()
    ]


def tables(frame: pd.DataFrame) -> list[Table]:
    out = []
    for problem, part in frame.groupby("problem", sort=False):
        rows = [
            [
                label,
                f"{row['before_bytes'] / 2**20:,.0f}",
                f"{row['peak_bytes'] / 2**20:,.0f}",
                f"{row['copies']:.2f}",
                f"{row['planned']:.2f}",
            ]
            for label, (_, row) in zip(_labels(part), part.iterrows(), strict=True)
        ]
        columns = ["", "MiB before", "MiB at peak", "copies", "planned"]
        size = part["params_bytes"].iloc[0] / 2**20
        out.append(tabulate(f"{problem}, {size:,.0f} MiB", columns, rows))
    last = frame.iloc[-1]
    out[-1].caption = (
        f"Copies of params beside params and state; {last['read']} of {last['device']},"
        f" JAX {last['jax']}."
    )
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    gap = (frame["copies"] - frame["planned"]).abs()
    worst = gap.idxmax()
    out = [
        f"Peak and plan differ by at most {gap[worst]:.2f} copies of params"
        f" ({_labels(frame.loc[[worst]])[0]} on {frame.loc[worst, 'problem']})."
    ]
    for problem, part in frame.groupby("problem", sort=False):
        least, most = part["copies"].idxmin(), part["copies"].idxmax()
        name = lambda i: _labels(frame.loc[[i]])[0]
        out.append(
            f"{problem}: beside params and state {part['copies'][least]:.2f} copies of"
            f" params ({name(least)}) to {part['copies'][most]:.2f} ({name(most)})."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    problems = list(frame.groupby("problem", sort=False))
    out = Figure(figsize=(4.2 * len(problems) + 2, 4), layout="constrained")
    axes = out.subplots(1, len(problems), squeeze=False, sharey=True)[0]
    for axis, (problem, part) in zip(axes, problems, strict=True):
        places = range(len(part))
        for shift, colour, column in (
            (0.2, COLOURS[0], "copies"),
            (-0.2, COLOURS[1], "planned"),
        ):
            axis.barh(
                [i + shift for i in places],
                part[column],
                height=0.4,
                color=colour,
                label={"copies": "process", "planned": "planned by XLA"}[column],
            )
        axis.set_yticks(list(places), _labels(part))
        axis.set(title=problem, xlabel="copies of params, beside params and state")
        axis.grid(axis="x", alpha=0.25)
    axes[0].invert_yaxis()
    axes[0].legend(frameon=False, fontsize=8)
    return out


# Alone, since cells beside one another could exhaust the machine together.
STUDY = Study("Peak memory of a process", cells, tables, findings, figure, timed=True)
