"""The folder of results: what a run keeps, and what a resumed run finds there."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import old_folder as folder
from benchmarks.attack.engine import GOALS, METHODS

SETTINGS = (
    "data",
    "images",
    "queries",
    "smoothing",
    "directions",
    "learning_rates",
    "start",
    "seed",
    "epochs",
    "training_images",
)


class Row(NamedTuple):
    """An attack on one image: a line of the CSV."""

    goal: str
    method: str
    learning_rate: float
    image: int  # its row in the file
    label: int
    asked: int  # the class that the goal is about
    success: bool
    queries: int  # spent until the first success, or in all
    l2: float  # of the perturbation at the first success
    linf: float


class Finished(NamedTuple):
    """What is kept of a method: attacks with every learning rate on every image."""

    rows: list[Row]  # learning rate by learning rate
    adversarial: np.ndarray  # f32[n, h, w, c], of the rows that `tuned` picks


def capped_queries(rows: Sequence[Row], budget: int) -> np.ndarray:
    """Queries to the first success; a failure counts at the cap, the whole budget."""
    return np.array([row.queries if row.success else budget for row in rows])


def tuned(rows: Sequence[Row], budget: int) -> list[Row]:
    """A row an image, its learning rate chosen on images that are not counted with it.

    The images are dealt into two halves; each takes the learning rate with which the
    other half needs the fewest queries on average. So no rate is judged on the images
    that it was chosen on (but for a single image).
    """
    rates = sorted({row.learning_rate for row in rows})
    grid = [[row for row in rows if row.learning_rate == rate] for rate in rates]
    spent = np.stack([capped_queries(line, budget) for line in grid])
    best = []
    for half in (0, 1):
        others = spent[:, 1 - half :: 2] if spent.shape[1] > 1 else spent
        best.append(int(others.mean(axis=1).argmin()))
    return [grid[best[i % 2]][i] for i in range(len(grid[0]))]


class Folder(folder.Folder):
    """What the attack keeps."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.csv = path / "attack.csv"
        self.log = path / "attack.log"
        self.victim = path / "classifier.msgpack"

    def images(self, goal: str, name: str) -> Path:
        return self.path / f"adversarial-{goal}-{name}.npy"

    def examples(self, goal: str) -> Path:
        return self.path / f"examples-{goal}.png"

    def success(self, goal: str) -> Path:
        return self.path / f"success-{goal}.png"

    def open(self, settings: dict[str, Any], resume: bool) -> None:
        """Starts afresh, or checks that what is there was made with these settings."""
        old = [self.csv, self.log, self.victim]
        for goal in GOALS:
            old += [self.examples(goal), self.success(goal)]
            old += [self.images(goal, name) for name in METHODS]
        self.begin(settings, old, resume)

    def rows(self) -> dict[tuple[str, str], list[Row]]:
        """The CSV, by goal and method; empty where there is none that can be read."""
        try:
            with self.csv.open(newline="") as file:
                lines = [_parse_row(line) for line in csv.DictReader(file)]
        except (OSError, ValueError, TypeError, KeyError):
            return {}
        kept: dict[tuple[str, str], list[Row]] = {}
        for row in lines:
            kept.setdefault((row.goal, row.method), []).append(row)
        return in_order(kept)

    def load(
        self, chosen: Sequence[int], rates: Sequence[float]
    ) -> dict[tuple[str, str], Finished]:
        """What is complete for the chosen images and learning rates."""
        expected = [(rate, image) for rate in rates for image in chosen]
        complete = {}
        for key, rows in self.rows().items():
            try:
                adversarial = np.load(self.images(*key))
            except (OSError, ValueError, EOFError):
                continue
            found = [(row.learning_rate, row.image) for row in rows]
            if found == expected and len(adversarial) == len(chosen):
                complete[key] = Finished(rows, adversarial)
        return complete

    def store(
        self, key: tuple[str, str], results: Mapping[tuple[str, str], Finished]
    ) -> None:
        """Writes the images of one method and, after that, the rows of all."""
        images, text = io.BytesIO(), io.StringIO(newline="")
        np.save(images, results[key].adversarial)
        self.save(self.images(*key), images.getvalue())
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Row._fields)
        for finished in in_order(results).values():
            for row in finished.rows:
                sizes = [f"{x:.6f}" if row.success else "" for x in (row.l2, row.linf)]
                writer.writerow([*row[:6], int(row.success), row.queries, *sizes])
        self.save(self.csv, text.getvalue().encode())


def _parse_row(line: dict[str, str]) -> Row:
    number = lambda name: float(line[name]) if line[name] else np.nan
    return Row(
        line["goal"],
        line["method"],
        float(line["learning_rate"]),
        *(int(line[name]) for name in ("image", "label", "asked")),
        success=line["success"] == "1",
        queries=int(line["queries"]),
        l2=number("l2"),
        linf=number("linf"),
    )


def in_order(results: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    keys = [(goal, name) for goal in GOALS for name in METHODS]
    return {key: results[key] for key in keys if key in results}
