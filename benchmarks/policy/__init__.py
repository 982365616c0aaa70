"""Policies that are tuned by their returns alone, beside evolution strategies.

Environments are gymnax's and brax's, policies are flax's; ours and evosax's ask for the
same number of environment steps, with the same grid of step sizes and smoothings.
"""

from __future__ import annotations

import argparse

# Name: module, which holds a STUDY.
STUDIES = {"returns": "benchmarks.policy.returns"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the task."""
    from benchmarks import studies

    studies.add_arguments(parser, STUDIES)


def run(args: argparse.Namespace) -> None:
    """Runs the task."""
    from benchmarks import studies

    studies.run(args, STUDIES)
