"""The papers' synthetic experiments side by side, their calls of f counted.

Each study is a module with a :class:`benchmarks.study.Study`: cells that are
measured, tables, findings computed from the rows, and a figure.
"""

from __future__ import annotations

import argparse

# Name: module, which holds a STUDY.
STUDIES = {
    "variance": "benchmarks.synthetic.variance",
    "split": "benchmarks.synthetic.batch_split",
    "dense": "benchmarks.synthetic.density",
    "guide": "benchmarks.synthetic.guide",
    "convergence": "benchmarks.synthetic.convergence",
    "reproduction": "benchmarks.synthetic.reproduction",
    "equivalence": "benchmarks.synthetic.equivalence",
    "shifting": "benchmarks.synthetic.shifting",
    "noise": "benchmarks.synthetic.noise",
    "projection": "benchmarks.synthetic.projection",
    "rival": "benchmarks.synthetic.rival",  # needs PyTorch
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the task."""
    from benchmarks import studies

    also = {"rival": "times a PyTorch loop and needs PyTorch"}
    studies.add_arguments(parser, STUDIES, also)


def run(args: argparse.Namespace) -> None:
    """Runs the task."""
    from benchmarks import studies

    studies.run(args, STUDIES)
