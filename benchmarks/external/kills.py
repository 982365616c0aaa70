"""A run that is killed at random moments, and goes on each time."""

import functools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.external.faults import FAILED
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines

QUICK, FULL = 5, 20  # times that a run is killed


def command(log: Path) -> list[str]:
    """Begins or goes on with the run whose log this is; prints all bits of its end."""
    return [sys.executable, "-m", "benchmarks.external.killed", str(log.parent)]


def size_of(log: Path) -> int:
    """Bytes that are written."""
    return log.stat().st_size if log.exists() else 0


def measure(kills: int, seed: int, tick: Tick) -> list[Row]:
    """An unbroken run, then one that is killed so many times."""
    rng, rows = np.random.default_rng(seed), []
    with tempfile.TemporaryDirectory() as folder:
        unbroken, killed = (
            Path(folder) / name / "evaluations.jsonl" for name in ("unbroken", "killed")
        )
        expected = subprocess.check_output(command(unbroken))
        length = size_of(unbroken)
        for i in range(kills):
            tick(i / (kills + 1))
            before = size_of(killed)
            process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL)
            # Somewhere in its share of the way, anywhere within a step.
            until = before + rng.random() * 2 * (length - before) / (kills - i + 1)
            while process.poll() is None and size_of(killed) <= until:
                time.sleep(1e-4)
            time.sleep(rng.random() * 0.02)
            process.kill()
            process.wait()
            rows.append({"kill": i + 1, "written": size_of(killed) / length})
        same = subprocess.check_output(command(killed)) == expected
        ids = [pd.read_json(log, lines=True)["id"] for log in (unbroken, killed)]
    once = ids[1].is_unique and set(ids[0]) == set(ids[1])
    found = {"same_end": same, "each_once": once, "points": len(ids[1])}
    return [row | found for row in rows]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """One cell."""
    return {"kills": functools.partial(measure, FULL if full else QUICK, seed)}


def tables(frame: pd.DataFrame) -> Tables:
    """Where it was killed."""
    title = f"kill -9, {FAILED:.0%} of points failing: share of the log written"
    return {title: frame.set_index("kill")[["written"]]}


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
    return lines(frame, x="kill", y="written")


STUDY = Study("External: killed at any moment", cells, tables, findings, figure)
