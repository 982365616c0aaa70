"""A program as a function of a point."""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Sequence

import jax
import numpy as np

from zojax._numerics import PyTree


def point_as_json(point: PyTree) -> str:
    """Arrays as nested lists, in the dicts and lists of the pytree."""
    return json.dumps(jax.tree.map(lambda x: np.asarray(x).tolist(), point))


def last_number(output: str) -> float:
    """The number that the last line is."""
    lines = output.split("\n")
    said = [line.strip() for line in lines if line.strip()]
    if not said:
        raise ValueError("the program printed nothing, and its last line is the value")
    return float(said[-1])


def _end(process: subprocess.Popen) -> None:
    """Ends a program and all that it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.communicate()


@dataclasses.dataclass(frozen=True)
class Command:
    """What :func:`command` returns; a dataclass, so that it can be sent to workers."""

    arguments: tuple[str, ...]
    write: Callable[[PyTree], str]
    read: Callable[[str], float]
    cwd: str | None

    def __call__(
        self,
        point: PyTree,
        *,
        query_id: int,
        query_key: np.ndarray,
        timeout: float | None = None,
    ) -> float:
        """Runs the program at a point."""
        words = " ".join(str(int(word)) for word in query_key)
        own = {"ZOJAX_QUERY_ID": str(query_id), "ZOJAX_QUERY_KEY": words}
        process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.cwd,
            env={**os.environ, **own},
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(self.write(point), timeout)
        except subprocess.TimeoutExpired:
            limit = f"no value after {timeout:g} s"
            raise TimeoutError(f"{shlex.join(self.arguments)}: {limit}") from None
        finally:
            if process.poll() is None:
                _end(process)
        if process.returncode:
            said = (errors.strip() or "it said nothing").splitlines()[-1]
            status = f"exit status {process.returncode}: {said}"
            raise RuntimeError(f"{shlex.join(self.arguments)}: {status}")
        return self.read(output)


def command(
    arguments: Sequence[str | os.PathLike],
    *,
    write: Callable[[PyTree], str] = point_as_json,
    read: Callable[[str], float] = last_number,
    cwd: str | os.PathLike | None = None,
) -> Command:
    """A program as a function for :func:`optimize`: point -> number.

    The program reads the point from its standard input and prints the value as its last
    line. It ends with status 0, or has failed; one that is late is ended, with all that
    it started. ZOJAX_QUERY_ID and ZOJAX_QUERY_KEY in its environment are an id of the
    point and two words to seed from.

    Args:
      arguments: the program and its arguments; no shell is in between.
      write: point -> what the program reads: JSON, nested lists for arrays.
      read: what the program printed -> value.
      cwd: where it runs; here.

    Returns:
      A function that can be sent to other processes if write and read can. A program
      needs no process around it: a thread pool runs several at a time.

    Raises:
      ValueError: for arguments that are no list of words.

    Example:
      >>> import numpy as np, sys, zojax
      >>> code = "import json; print(sum(json.load(open(0))))"
      >>> add = zojax.external.command([sys.executable, "-c", code])
      >>> add(np.array([1.0, 2.5]), query_id=0, query_key=np.zeros(2, np.uint32))
      3.5

    Source: none.
    """
    listed = not isinstance(arguments, (str, bytes)) and len(list(arguments)) > 0
    if not listed or not all(isinstance(x, (str, os.PathLike)) for x in arguments):
        accepted = 'a list of words, as ["./simulate", "--fast"]'
        raise ValueError(f"arguments must be {accepted}, got {arguments!r}")
    for name, value in (("write", write), ("read", read)):
        if not callable(value):
            raise ValueError(f"{name} must be callable, got {value!r}")
    words = tuple(os.fspath(x) for x in arguments)
    return Command(words, write, read, None if cwd is None else os.fspath(cwd))
