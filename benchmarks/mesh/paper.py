"""The paper's mesh experiment (arXiv 2510.19975, Section 5).

Coarse 10 x 10, fine 20 x 20, 512 directions, amplitude 1e-5, gradient descent with a
constant step of 0.1, 200 iterations.
"""

import functools

from benchmarks.mesh.budget import figure, findings, tables
from benchmarks.mesh.runs import EXACT, METHODS, measure
from benchmarks.study import Cell, Study

NUM_DIRECTIONS, ITERATIONS, STEP_SIZE = 512, 200, 0.1
QUICK, FULL = 2, 10  # seeds


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each method, all seeds."""
    number = FULL if full else QUICK
    seeds = range(number * seed, number * (seed + 1))
    setting = NUM_DIRECTIONS, ITERATIONS, [STEP_SIZE], False, seeds
    return {
        name: functools.partial(measure, name, *setting) for name in (EXACT, *METHODS)
    }


STUDY = Study(
    "Mesh: the paper's setting (arXiv 2510.19975)", cells, tables, findings, figure
)
