"""A run that is killed at random moments, and goes on each time."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.external.faults import FAILED
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, tabulate

QUICK, FULL = 5, 20  # times that a run is killed


def begin(directory: Path) -> subprocess.Popen:
    """Starts the run in this directory, or goes on with it."""
    command = [sys.executable, "-m", "benchmarks.external.killed", str(directory)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def whole(process: subprocess.Popen) -> str:
    """What a run prints at its end: its params, all bits."""
    said = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"a run ended with status {process.returncode}")
    return said


def size_of(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def measure(kills: int, seed: int, tick: Tick) -> list[Row]:
    """An unbroken run, then one that is killed so many times."""
    rng, rows = np.random.default_rng(seed), []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("unbroken", "killed")]
        expected = whole(begin(paths[0]))
        logs = [path / "evaluations.jsonl" for path in paths]
        length = size_of(logs[0])
        for i in range(kills):
            tick(i / (kills + 1))
            process, before = begin(paths[1]), size_of(logs[1])
            # Somewhere in its share of the way, anywhere within a step.
            until = before + rng.random() * 2 * (length - before) / (kills - i + 1)
            while process.poll() is None and size_of(logs[1]) <= until:
                time.sleep(1e-4)
            time.sleep(rng.random() * 0.02)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            rows.append({"kill": i + 1, "bytes": size_of(logs[1]), "length": length})
        same = whole(begin(paths[1])) == expected
        ids = [
            [json.loads(line)["id"] for line in log.read_text().splitlines()]
            for log in logs
        ]
    once = sorted(ids[0]) == sorted(ids[1]) and len(set(ids[1])) == len(ids[1])
    found = {"same_end": same, "each_once": once, "points": len(ids[1])}
    return [row | found for row in rows]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """One cell."""
    return {"kills": functools.partial(measure, FULL if full else QUICK, seed)}


def tables(frame: pd.DataFrame) -> list[Table]:
    """Where it was killed."""
    rows = [
        [int(row.kill), f"{row.bytes / row.length:.0%}"] for row in frame.itertuples()
    ]
    title = f"kill -9, {FAILED:.0%} of points failing"
    return [tabulate(title, ["kill", "of the log written"], rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    """Whether the end is the same."""
    end = "bit-equal" if frame["same_end"].all() else "NOT equal"
    counted = "exactly once" if frame["each_once"].all() else "NOT once"
    return [
        f"Killed {len(frame)} times, the run's end is {end} to that of the unbroken"
        f" run, and each of its {frame['points'].iloc[0]} points is in the log"
        f" {counted}."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """The log's length at each kill."""
    out = Figure(figsize=(5.5, 3.8), layout="constrained")
    axis = out.subplots()
    share = frame["bytes"] / frame["length"]
    axis.plot(frame["kill"], share, "o", color=COLOURS[0])
    axis.set(xlabel="kill", ylabel="share of the run", title="kill -9")
    axis.grid(alpha=0.25)
    return out


STUDY = Study("External: killed at any moment", cells, tables, findings, figure)
