"""Memory of an estimator's step: what XLA plans, and what a process takes.

Each study is a module with a :class:`benchmarks.study.Study`.
"""

from __future__ import annotations

import argparse
import os

# Name: module, which holds a STUDY.
STUDIES = {
    "steps": "benchmarks.memory.steps",
    "peak": "benchmarks.memory.peak",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the task."""
    from benchmarks import studies

    studies.add_arguments(parser, STUDIES)


def run(args: argparse.Namespace) -> None:
    """Runs the task."""
    from benchmarks import studies

    # On a GPU this process would otherwise take most of the memory from its children.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    studies.run(args, STUDIES)
