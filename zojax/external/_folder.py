"""The directory of a run: what was asked, what was told, and the state in between.

Every file is replaced whole, except ``evaluations.jsonl``, to which one line is added
for each evaluation as it ends. Killed at any moment, a run finds there all it needs.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zojax import _docs as docs
from zojax._estimators.rounds import Queries
from zojax._numerics import PyTree
from zojax.external._attempt import Attempt, Query

try:
    import fcntl
except ImportError:  # not on Windows, where nothing keeps two runs apart
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
LOG = "evaluations.jsonl"


def _replace(path: Path, write: Any) -> None:
    """Writes a file whole or not at all."""
    new = path.with_suffix(path.suffix + ".new")
    with open(new, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _save_leaves(path: Path, tree: PyTree, **numbers: Any) -> None:
    # As bytes: a file of numpy forgets what bfloat16 is.
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    raw = [np.frombuffer(x.tobytes(), np.uint8) for x in leaves]
    named: dict[str, Any] = {f"leaf{i}": x for i, x in enumerate(raw)}
    _replace(path, lambda file: np.savez(file, **named, **numbers))


def _load_leaves(path: Path, like: PyTree, **numbers: int) -> PyTree | None:
    """The leaves, if the file has these numbers."""
    with np.load(path) as saved:
        if any(saved[name] != number for name, number in numbers.items()):
            return None
        leaves = [
            np.frombuffer(saved[f"leaf{i}"].tobytes(), x.dtype).reshape(x.shape)
            for i, x in enumerate(jax.tree.leaves(like))
        ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _digest(tree: PyTree) -> str:
    """Names the values of a pytree."""
    found = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(x)
        described = f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}"
        found.update(described.encode() + array.tobytes())
    return found.hexdigest()


def _read_log(path: Path) -> dict[int, dict]:
    """The records by id; a last line that was cut off is taken out of the file."""
    if not path.exists():
        return {}
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        _replace(path, lambda file: file.write(whole))
    records = map(json.loads, whole.splitlines())
    return {record["id"]: record for record in records}


class Folder:
    """An open directory, or a stand-in that keeps nothing (path None)."""

    def __init__(self, path: str | os.PathLike | None):
        """Opens nothing yet; see :func:`opened`."""
        self.path = None if path is None else Path(path)
        self.records: dict[int, dict] = {}
        self.log: Any = None
        self.open_files = contextlib.ExitStack()

    def begin(self, start: PyTree) -> None:
        """Raises if the directory holds a run from another start."""
        if self.path is None:
            return
        settings = {"format": FORMAT, "start": _digest(start)}
        path = self.path / "run.json"
        if path.exists():
            found = json.loads(path.read_text())
            if found != settings:
                raise ValueError(
                    f"directory must be new, or hold this run, got {str(self.path)!r},"
                    " which was begun with other params, another estimator, optimizer"
                    f" or key; {docs.RUN_DIRECTORY}"
                )
        else:
            text = json.dumps(settings).encode()
            _replace(path, lambda file: file.write(text))
        self.records = _read_log(self.path / LOG)
        log = open(self.path / LOG, "ab", buffering=0)  # noqa: SIM115
        self.log = self.open_files.enter_context(log)

    def load(self, like: PyTree) -> PyTree:
        """The state after the last step that was saved, else that of the start."""
        if self.path is None or not (self.path / "state.npz").exists():
            return like
        return _load_leaves(self.path / "state.npz", like)

    def save(self, state: PyTree) -> None:
        """Saves the state after a step."""
        if self.path is not None:
            os.fsync(self.log.fileno())
            _save_leaves(self.path / "state.npz", state)

    def asked(self, step: int, turn: int, like: PyTree) -> Queries | None:
        """What was asked in this round, if it was begun."""
        path = None if self.path is None else self.path / "asked.npz"
        if path is None or not path.exists():
            return None
        return _load_leaves(path, like, step=step, turn=turn)

    def ask(self, asked: Queries, step: int, turn: int) -> None:
        """Writes down what is asked, before anything is evaluated."""
        if self.path is not None:
            _save_leaves(self.path / "asked.npz", asked, step=step, turn=turn)

    def tell(self, query: Query, found: Attempt, tries: int, step: int) -> None:
        """Adds a line, whole or not at all."""
        finite = math.isfinite(found.value)
        record = {
            "id": query.id,
            "step": step,
            "value": found.value if finite else None,
            "attempts": tries,
            "seconds": round(found.seconds, 6),
            "error": found.error,
            "timed_out": found.timed_out,
        }
        if found.traceback is not None:
            record["traceback"] = found.traceback
        self.records[query.id] = record
        if self.log is not None:
            self.log.write(json.dumps(record).encode() + b"\n")

    def values(self, ids: Sequence[int]) -> np.ndarray:
        """Their values, NaN of those that failed."""
        found = (self.records[i]["value"] for i in ids)
        return np.array([math.nan if value is None else value for value in found])

    def forget(self, before: int) -> None:
        """Keeps the records from this id on in memory, and all in the file."""
        kept = {i: record for i, record in self.records.items() if i >= before}
        self.records = kept


@contextlib.contextmanager
def opened(path: str | os.PathLike | None) -> Iterator[Folder]:
    """The directory, made if need be, and locked while it is open."""
    folder = Folder(path)
    if folder.path is None:
        yield folder
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    with open(folder.path / "lock", "wb") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(
                    f"directory must be of no other run, got {str(folder.path)!r},"
                    " which another process has open"
                ) from None
        with folder.open_files:
            yield folder
