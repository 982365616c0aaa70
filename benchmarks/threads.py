"""Independent pieces of work in threads, kept as they end, stopped together."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Name = TypeVar("Name")
Result = TypeVar("Result")


class _Stopped(Exception):
    """Raised inside a piece of work when the run is being interrupted."""


def run_all(
    works: Mapping[Name, Callable[[Callable[[], None]], Result]],
    jobs: int,
    keep: Callable[[Name, Result], None],
) -> None:
    """Runs all works, some at a time; an exception of one, or Ctrl-C, stops the others.

    Args:
      works: functions of ``check``, to be called now and then: it raises where the run
        is being stopped.
      jobs: how many at a time.
      keep: is called with (name, result) in the calling thread as each ends.
    """
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise _Stopped

    pool = ThreadPoolExecutor(jobs)
    try:
        running: dict[Future, Name] = {
            pool.submit(work, check): name for name, work in works.items()
        }
        while running:
            ended, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            # Results first: an exception of one loses nothing of the others.
            for future in sorted(ended, key=lambda f: f.exception() is not None):
                keep(running.pop(future), future.result())
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
