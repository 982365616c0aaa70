"""Time of an estimator's step: beside others', by d, K, sampler, rank and devices.

Each study is a module with a :class:`benchmarks.study.Study`. Programs that are
compared take turns, so that a change of the machine's speed falls on all of them.
"""

from __future__ import annotations

import argparse

from benchmarks.speed.timing import median_ratio, take_turns, training

__all__ = ["add_arguments", "median_ratio", "run", "take_turns", "training"]

# Name: module, which holds a STUDY.
STUDIES = {
    "rivals": "benchmarks.speed.rivals",
    "scaling": "benchmarks.speed.scaling",
    "noise": "benchmarks.speed.noise",
    "low-rank": "benchmarks.speed.low_rank",
    "compiling": "benchmarks.speed.compiling",
    "devices": "benchmarks.speed.devices",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the task."""
    from benchmarks import studies

    studies.add_arguments(parser, STUDIES)


def run(args: argparse.Namespace) -> None:
    """Runs the task."""
    from benchmarks import studies

    studies.run(args, STUDIES)
