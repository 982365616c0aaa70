"""The problems that zojax is measured on: ``python -m benchmarks --help``.

This module imports nothing heavy, since the command reads it before it knows the task.
"""

from collections.abc import Collection

import click


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
