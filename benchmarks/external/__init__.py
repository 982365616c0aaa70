"""Objectives that JAX cannot call: programs and simulators that fail, hang and wait.

How near a run is to the wall time of its evaluations alone, what failures cost a
descent, and whether a run that is killed again and again comes to the same end.
"""

import logging

from benchmarks import studies


def prepare() -> None:
    """Silences failures: they are meant to be, and the tables count them."""
    logging.getLogger("zojax.external").setLevel(logging.ERROR)


command = studies.command(__name__, ("workers", "simulator", "kills"), prepare=prepare)
