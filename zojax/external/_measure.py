"""Evaluations in turn, in a pool or through a map, with a limit and with retries."""

import concurrent.futures
import functools
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from zojax import _docs as docs
from zojax._checks import check_int, check_number
from zojax.external._attempt import (
    Attempt,
    Function,
    Query,
    attempt,
    failed,
    late,
    named_by,
)

logger = logging.getLogger("zojax.external")

Found = tuple[Query, Attempt]
# What is asked for may be added to while it runs.
Run = Callable[["deque[Query]"], Iterator[Found]]
# How much longer a function that keeps its own limit may take to end.
GRACE = 1.0


def _here(call: Callable[[Query], Attempt]) -> Run:
    def run(waiting):
        while waiting:
            query = waiting.popleft()
            yield query, call(query)

    return run


def _through_map(call: Callable[[Query], Attempt], mapped: Callable[..., Any]) -> Run:
    def run(waiting):
        while waiting:
            queries = list(waiting)
            waiting.clear()
            yield from zip(queries, mapped(call, queries), strict=True)

    return run


def _broken(error: Exception) -> RuntimeError:
    return RuntimeError(
        "the pool broke: a worker died, which ends a ProcessPoolExecutor. If none ever"
        " started, the script that makes the pool is imported by its workers: put all"
        ' that it runs under if __name__ == "__main__". What was measured is kept in'
        " the directory, if there is one; a pool of pebble (pebble.ProcessPool)"
        f" replaces its workers ({error})"
    )


def _result(
    future: concurrent.futures.Future, seconds: float, limit: float | None
) -> Attempt:
    """What a future holds. A pool that broke ends the run; a worker that died does not.

    A pool that replaces its workers (pebble's) tells of a limit that was passed, and of
    a worker that died, as errors of the one future.
    """
    try:
        return future.result()
    except concurrent.futures.BrokenExecutor as error:
        raise _broken(error) from error
    except TimeoutError:
        return late(seconds if limit is None else limit)  # it may have been queued
    except concurrent.futures.CancelledError:
        raise
    except Exception as error:  # the worker died, or could not send or be sent
        return failed(error, seconds)


def _in_pool(
    submit: Callable[[Query], concurrent.futures.Future],
    limit: float | None,
    workers: int | None,
    *,
    ends_late: bool = False,
) -> Run:
    """At most so many at a time, since a limit counts from when one starts.

    A worker that is late is not waited for, nor given more until it is done; unless the
    pool ends it (``ends_late``).
    """
    watches = limit is not None and not ends_late
    hanging: set[concurrent.futures.Future] = set()

    def free(running):
        hanging.difference_update([f for f in hanging if f.done()])
        return workers is None or len(running) + len(hanging) < workers

    def refill(waiting, running):
        while waiting and free(running):
            query = waiting.popleft()
            try:
                future = submit(query)
            except concurrent.futures.BrokenExecutor as error:
                raise _broken(error) from error
            running[future] = query, time.monotonic()
        if waiting and not running:
            raise RuntimeError(
                f"all {workers} workers hang in evaluations that passed their limit of"
                f" {limit:g} s. A pool of pebble (pebble.ProcessPool) ends such workers"
                ", and external.command such programs"
            )

    def run(waiting):
        running: dict[Any, tuple[Query, float]] = {}
        first = concurrent.futures.FIRST_COMPLETED
        try:
            while waiting or running:
                refill(waiting, running)
                left = None
                if watches:
                    oldest = min(start for _, start in running.values())
                    left = max(0.0, oldest + limit - time.monotonic())
                done, _ = concurrent.futures.wait(running, left, return_when=first)
                for future in done:
                    query, start = running.pop(future)
                    yield query, _result(future, time.monotonic() - start, limit)
                for future, (query, start) in list(running.items()):
                    if watches and time.monotonic() - start >= limit:
                        del running[future]
                        if not future.cancel():
                            hanging.add(future)
                        yield query, late(limit)
        finally:
            for future in running:
                future.cancel()

    return run


def _runner(
    function: Function, executor: Any, timeout: float | None, workers: int | None
) -> Run:
    call = functools.partial(_attempt_within, function, timeout=timeout)
    keeps_limit = "timeout" in named_by(function)
    limit = timeout
    if timeout is not None and keeps_limit:
        limit = timeout + GRACE
    if hasattr(executor, "schedule"):  # a pool that ends workers itself, as pebble's
        scheduled = lambda query: executor.schedule(call, args=[query], timeout=limit)
        return _in_pool(scheduled, limit, None, ends_late=True)
    if hasattr(executor, "submit"):
        if timeout is not None and workers is None:
            workers = getattr(executor, "_max_workers", None)
            if workers is None:
                message = "workers must be the number of the executor's with a timeout"
                raise ValueError(f"{message}, got None")
        submitted = lambda query: executor.submit(call, query)
        return _in_pool(submitted, limit, workers)
    if timeout is not None and not keeps_limit:
        raise ValueError(
            "timeout must be None here, since nothing can end an evaluation: give an"
            " executor (pebble.ProcessPool ends its workers), or a function that names"
            f" timeout and keeps it, as external.command(...); got {timeout!r};"
            f" {docs.TIME_LIMITS}"
        )
    if executor is None:
        return _here(call)
    if not callable(executor):
        accepted = "an executor with submit, a map (function, items) -> values, or None"
        raise ValueError(f"executor must be {accepted}, got {executor!r}")
    return _through_map(call, executor)


def _attempt_within(
    function: Function, query: Query, *, timeout: float | None
) -> Attempt:
    return attempt(function, query, timeout)


def measuring(
    function: Function,
    executor: Any = None,
    timeout: float | None = None,
    retries: int = 0,
    workers: int | None = None,
) -> Callable[[Iterable[Query]], Iterator[tuple[Query, Attempt, int]]]:
    """Makes a function that has queries evaluated, for loops of one's own.

    Args:
      function, executor, timeout, retries, workers: as in :func:`optimize`.

    Returns:
      A function of :class:`Query` tuples of different ids that yields (query, its last
      :class:`Attempt`, how many there were), as they are done, in any order.

    Raises:
      ValueError: for an argument out of its range.

    Example:
      >>> import numpy as np, zojax
      >>> measure = zojax.external.measuring(lambda x: 1 / float(x))
      >>> key = np.zeros(2, np.uint32)
      >>> queries = [zojax.external.Query(i, np.float64(i), key) for i in (1, 2)]
      >>> [(query.id, found.value) for query, found, _ in measure(queries)]
      [(1, 1.0), (2, 0.5)]

    Source: none.
    """
    if timeout is not None:
        check_number("timeout", timeout, 0.0, schedule=False)
    check_int("retries", retries, 0)
    if workers is not None:
        check_int("workers", workers, 1)
    run = _runner(function, executor, timeout, workers)
    failures = itertools.count()

    def measure(queries):
        waiting, tries = deque(queries), {}
        for query, found in run(waiting):
            tries[query.id] = number = tries.get(query.id, 0) + 1
            if found.error is not None:
                # One is news; the rest are for those who listen, and for the log.
                level = logging.INFO if next(failures) else logging.WARNING
                logger.log(
                    level, "query %d, attempt %d: %s", query.id, number, found.error
                )
                if number <= retries:
                    waiting.append(query)
                    continue
            yield query, found, number

    return measure
