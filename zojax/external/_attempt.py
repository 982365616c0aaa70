"""One evaluation of a host function, where it runs: here or in a worker."""

import inspect
import math
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from zojax._numerics import PyTree

Function = Callable[..., Any]
NAMED = ("query_id", "query_key", "timeout")


class Query(NamedTuple):
    """One point to evaluate."""

    id: int  # of the run: the number of those that were asked before it
    point: PyTree
    key: np.ndarray  # u32[2]


class Attempt(NamedTuple):
    """What became of one evaluation; error and timed_out say why value is NaN."""

    value: float  # NaN of one that failed
    seconds: float
    error: str | None = None
    traceback: str | None = None
    timed_out: bool = False


def named_by(function: Function) -> frozenset[str]:
    """Which of query_id, query_key and timeout the function wants, by its signature."""
    if not callable(function):
        raise ValueError(f"function must be callable, got {function!r}")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(NAMED) & set(parameters)


def late(seconds: float) -> Attempt:
    """An evaluation that was not waited for."""
    error = f"TimeoutError: no value after {seconds:.3g} s"
    return Attempt(math.nan, seconds, error, timed_out=True)


def failed(error: BaseException, seconds: float) -> Attempt:
    """An evaluation that raised, as a record that any process can send."""
    last = "".join(traceback.format_exception_only(error)).strip()
    whole = "".join(traceback.format_exception(error))
    timed_out = isinstance(error, TimeoutError)
    return Attempt(math.nan, seconds, last, whole, timed_out)


def attempt(function: Function, query: Query, timeout: float | None) -> Attempt:
    """Calls the function at the point; what it raises is written down."""
    known = {"query_id": query.id, "query_key": query.key, "timeout": timeout}
    kwargs = {name: known[name] for name in named_by(function)}
    start = time.monotonic()
    try:
        value = float(function(query.point, **kwargs))
    except Exception as error:
        return failed(error, time.monotonic() - start)
    seconds = time.monotonic() - start
    found = None if math.isfinite(value) else f"the value was {value}"
    return Attempt(value, seconds, found)
