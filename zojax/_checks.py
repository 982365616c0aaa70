"""Checks of static arguments: errors that name the argument, the value and the way."""

from typing import Any

import jax
import numpy as np


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float = np.inf,
    *,
    low_ok: bool = False,
    schedule: bool = True,
) -> None:
    """Raises unless low < value < high (low <= value: ``low_ok``), if it is known."""
    if isinstance(value, jax.core.Tracer) or (schedule and callable(value)):
        return
    accepted = f"a number {'>=' if low_ok else '>'} {low:g}"
    accepted += f" and < {high:g}" if high < np.inf else ""
    accepted += ", or a schedule" if schedule else ""
    kinds = (int, float, np.number, np.ndarray, jax.Array)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if is_number and np.ndim(value) == 0:
        number = float(value)
        if (number >= low if low_ok else number > low) and number < high:
            return
    raise ValueError(f"{name} must be {accepted}, got {value!r}")


def check_int(name: str, value: Any, minimum: int, why: str = "") -> None:
    """Raises unless value is a Python or numpy int >= minimum."""
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_int or value < minimum:
        array = isinstance(value, jax.Array)
        hint = (
            "; under optax.inject_hyperparams name it in static_args" if array else ""
        )
        raise ValueError(
            f"{name} must be an int >= {minimum}{why}, got {value!r}{hint}"
        )


def check_option(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    """Raises unless value is one of the accepted names."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {accepted}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raises unless value is a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_spreading(chunk_size: int | None, axis_name: str | None) -> None:
    """Checks how directions share memory and devices."""
    if chunk_size is not None:
        check_int("chunk_size", chunk_size, 1, " or None")
    if axis_name is not None and not isinstance(axis_name, str):
        accepted = "the name of a mesh axis or None"
        raise ValueError(f"axis_name must be {accepted}, got {axis_name!r}")
