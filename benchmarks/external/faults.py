"""Faults of a simulator by the number of the point, the same in every run."""

import time

import numpy as np

FAILED, HANGING = 0.10, 0.05  # shares of all points
FOREVER = 3600.0  # seconds


def fault_of(query_id: int) -> str | None:
    """What goes wrong at a point: "fails", "hangs" or nothing."""
    drawn = np.random.default_rng([20, query_id]).random()
    if drawn < FAILED:
        return "fails"
    return "hangs" if drawn < FAILED + HANGING else None


def suffer(query_id: int) -> None:
    """Fails, hangs, or returns."""
    fault = fault_of(query_id)
    if fault == "fails":
        raise RuntimeError(f"point {query_id} has no solution")
    if fault == "hangs":
        time.sleep(FOREVER)
