"""Compiling for a chip that is not there, and reading what the compiler has planned."""

from __future__ import annotations

import functools
import re

import jax
from jax.experimental import topologies

from benchmarks import UsageError

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
)


@functools.cache
def devices(topology: str) -> tuple[jax.Device, ...]:
    """The devices of a topology such as v5e:2x4, to compile for."""
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # of several kinds, by version
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"libtpu cannot compile for {topology} here: {line}"
        raise UsageError(message) from error
    return tuple(found.devices)


def operations(compiled: jax.stages.Compiled) -> dict[str, int]:
    """How many loops and collectives a program has; a started one counts once."""
    text = compiled.as_text()
    count = lambda names: len(re.findall(rf"\s(?:{names})(?:-start)?\(", text))
    return {"loops": count("while"), "collectives": count("|".join(COLLECTIVES))}
