"""Wall time of ZoAR beside a PyTorch loop in the manner of the paper's code.

Those of ``speed``'s rivals, on the paper's functions. Needs PyTorch.
"""

import functools

import pandas as pd

from benchmarks.rivals import zoar_torch
from benchmarks.speed.rivals import BATCHED, GAUSSIAN, LOOP, MEAN, OURS, programs
from benchmarks.speed.timing import compare, comparison, ratios
from benchmarks.study import Cell, Row, Tick

DIMENSION, REPEATS = 10_000, 7


def measure(function: str, seed: int, tick: Tick) -> list[Row]:
    """The programs take turns."""
    timed = programs(function, DIMENSION, seed)
    timed = {name: timed[name] for name in (LOOP, BATCHED, GAUSSIAN, OURS, MEAN)}
    return compare(timed, {"over_loop": LOOP}, REPEATS, tick)


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each of the paper's four functions, whose size is small."""
    return {f: functools.partial(measure, f, seed) for f in zoar_torch.FUNCTIONS}


def findings(frame: pd.DataFrame) -> list[str]:
    """Over the loop, which like the paper's code spends a query more, to log f."""
    return ratios(frame, "over_loop", (OURS, GAUSSIAN, BATCHED), LOOP)


COLUMNS = ("ms", "over_loop")
STUDY = comparison("Wall time beside a PyTorch loop", cells, findings, COLUMNS)
