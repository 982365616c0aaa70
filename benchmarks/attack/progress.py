"""What a run says while it works: bars, the row of each method, the time left."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

SILENCE = 20.0  # seconds without a line, where the output is no terminal


def spoken(seconds: float) -> str:
    """A duration as one says it."""
    if seconds < 90:
        return f"{max(5 * round(seconds / 5), 5)} s"
    return f"{seconds / 60:.0f} min"


class Watch:
    """Bars of the works that run, and lines about them on the console and in a log.

    Args:
      console: where lines go.
      totals: steps of each work, by its key.
    """

    def __init__(self, console: Console, totals: Mapping[Hashable, int]):
        self.console, self.totals = console, dict(totals)
        self.bars = Progress(
            TextColumn("{task.description:<30}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._log: Path | None = None
        self._unwritten: list[str] = []
        self._tasks: dict[Hashable, int] = {}
        self._done: dict[Hashable, float] = dict.fromkeys(totals, 0.0)
        self._kept = 0.0  # share of the work that was there before
        self._start = self._spoke = time.monotonic()
        self._lock = threading.Lock()

    def keep_lines(self, path: Path) -> None:
        """Writes to a log from now on, beginning with what was said before."""
        self._log = path
        self._write("")

    def _write(self, lines: str) -> None:
        self._unwritten.append(lines)
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write("".join(self._unwritten))
            self._unwritten.clear()

    def say(self, line: str) -> None:
        """Prints a line, and keeps it in the log."""
        self._spoke = time.monotonic()
        self.console.print(line, soft_wrap=not self.console.is_terminal)
        self._write(line + "\n")

    def begin(self) -> None:
        """Starts the clock that the time left is read from."""
        self._start = time.monotonic()

    def add(self, key: Hashable, label: str, *, kept: bool = False) -> None:
        """Shows a bar for a work; one that was kept is full."""
        total = self.totals[key]
        done, note = (total, "steps, kept") if kept else (0, "steps")
        bar = self.bars.add_task(label, total=total, completed=done, note=note)
        self._tasks[key] = bar
        if kept:
            self._done[key] = 1.0
            self._kept += 1 / len(self.totals)

    def move(self, key: Hashable, label: str, steps: int, note: str) -> None:
        """Moves a bar; where nobody sees bars, says so now and then."""
        self.bars.update(self._tasks[key], completed=steps, note=note)
        with self._lock:
            self._done[key] = steps / self.totals[key]
            quiet = time.monotonic() - self._spoke > SILENCE
            if quiet and not self.console.is_terminal:
                part = f"{label}: {steps} of {self.totals[key]} {note}"
                self.say(f"{part}; {self.left()}")

    def end(self, key: Hashable, row: str) -> None:
        """Says the row of a work that ended."""
        with self._lock:
            self._done[key] = 1.0
            self.say(f"{row}; {self.left()}")

    def left(self) -> str:
        """How long the rest will take, as far as one can tell."""
        share = sum(self._done.values()) / len(self._done) - self._kept
        rest = 1 - self._kept - share
        spent = time.monotonic() - self._start
        if rest < 1e-9:
            return f"all done after {spoken(spent)}"
        if share <= 0:
            return f"{spoken(spent)} so far"
        return f"about {spoken(spent * rest / share)} left"
