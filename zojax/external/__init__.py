"""Objectives that JAX cannot call: Python functions, programs, other machines."""

from zojax.external._attempt import Attempt, Query
from zojax.external._callback import as_value_fn
from zojax.external._command import Command, command
from zojax.external._measure import measuring
from zojax.external._optimize import Progress, optimize

__all__ = [
    "Attempt",
    "Command",
    "Progress",
    "Query",
    "as_value_fn",
    "command",
    "measuring",
    "optimize",
]
