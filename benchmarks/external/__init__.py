"""Objectives that JAX cannot call: programs and simulators that fail, hang and wait.

How near a run is to the wall time of its evaluations alone, what failures cost a
descent, and whether a run that is killed again and again comes to the same end.
"""

from __future__ import annotations

import argparse
import logging

# Name: module, which holds a STUDY.
STUDIES = {
    "workers": "benchmarks.external.workers",
    "simulator": "benchmarks.external.simulator",
    "kills": "benchmarks.external.kills",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the task."""
    from benchmarks import studies

    studies.add_arguments(parser, STUDIES)


def run(args: argparse.Namespace) -> None:
    """Runs the task."""
    from benchmarks import studies

    # Failures are meant to be; the tables count them.
    logging.getLogger("zojax.external").setLevel(logging.ERROR)
    studies.run(args, STUDIES)
