"""Memory of an estimator's step: what XLA plans, and what a process takes."""

import os

from benchmarks import studies

STUDIES = ("steps", "peak")


def prepare() -> None:
    """On a GPU this process would else take most of the memory from its children."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


command = studies.command(__name__, STUDIES, prepare=prepare)
