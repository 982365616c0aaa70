"""Mesh optimisation without gradients: vertices move until a PDE is solved better.

Each study is a module with a :class:`benchmarks.study.Study`.
"""

from __future__ import annotations

import argparse

# Name: module, which holds a STUDY.
STUDIES = {
    "solver": "benchmarks.mesh.solver",
    "paper": "benchmarks.mesh.paper",
    "budget": "benchmarks.mesh.budget",
    "external": "benchmarks.mesh.external",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the task."""
    from benchmarks import studies

    studies.add_arguments(parser, STUDIES)


def run(args: argparse.Namespace) -> None:
    """Runs the task."""
    from benchmarks import studies

    studies.run(args, STUDIES)
