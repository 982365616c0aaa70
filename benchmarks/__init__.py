"""The problems that zojax is measured on: ``python -m benchmarks --help``.

This module imports nothing heavy, since the command reads it before it knows the task.
"""

import argparse
import math
from collections.abc import Callable, Collection

import click

__all__ = ["UsageError", "chosen"]


class UsageError(click.ClickException):
    """Something that the user can put right: shown as one line, no traceback."""


def chosen(option: str, text: str, choices: Collection[str]) -> list[str]:
    """Some of the choices, which the text separates by commas, in their order."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in choices:
            raise UsageError(
                f"{option}: unknown {name!r}, choose from {','.join(choices)}"
            )
    return [name for name in choices if name in names]


# -- to be removed with argparse
LARGEST = 2**31 - 1  # counts and seeds are 32-bit in JAX


def whole_number(minimum: int) -> Callable[[str], int]:
    """Returns an argparse type: an int >= minimum (and at most LARGEST)."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if not minimum <= number <= LARGEST:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {minimum} to {LARGEST}, got {text!r}"
            )
        return number

    return parse


def positive(text: str) -> float:
    """An argparse type: a finite float > 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text!r}")
    return number


def positives(text: str) -> list[float]:
    """An argparse type: finite floats > 0, separated by commas; sorted."""
    return sorted({positive(part) for part in text.split(",")})


def names_of(kind: str, choices: Collection[str]) -> Callable[[str], list[str]]:
    """Returns an argparse type: some of the choices, separated by commas."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in choices:
                raise argparse.ArgumentTypeError(
                    f"unknown {kind} {name!r}, choose from {','.join(choices)}"
                )
        return [name for name in choices if name in names]

    return parse
