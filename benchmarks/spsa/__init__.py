"""SPSA as its users know it: beside noisyopt's, and on COCO's noisy functions.

COCO's functions (coco-experiment) are host functions, called from jitted steps; ours
and evosax's make the same number of calls, with step sizes from grids of one size.
"""

from __future__ import annotations

import argparse

# Name: module, which holds a STUDY.
STUDIES = {
    "reference": "benchmarks.spsa.reference",
    "coco": "benchmarks.spsa.coco",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the task."""
    from benchmarks import studies

    studies.add_arguments(parser, STUDIES)


def run(args: argparse.Namespace) -> None:
    """Runs the task."""
    from benchmarks import studies

    studies.run(args, STUDIES)
