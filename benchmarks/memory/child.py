"""One measurement of the peak memory of steps, in a process of its own.

    python -m benchmarks.memory.child '{"problem": "vector", "size": 1000000, ...}'

prints a row as JSON: the memory before the steps and at their peak, in bytes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import resource
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.memory.programs import (
    compile_step,
    layers,
    num_bytes,
    planned,
    vector,
)

STEPS = 3
PROBLEMS = {"vector": vector, "layers": layers}


def _status(field: str) -> int | None:
    """Bytes of a field of Linux' /proc/self/status, or None where there is none."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _maximum() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _start_peak() -> None:
    """Forgets the peak of imports and compilation, where the system can."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pass


def memory(device: jax.Device) -> tuple[str, int, int]:
    """(what is read, bytes now, bytes at the peak).

    A child inherits ru_maxrss from the process that started it, so that Linux' own
    mark of this process comes first.
    """
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return "device", stats["bytes_in_use"], stats["peak_bytes_in_use"]
    now, peak = _status("VmRSS"), _status("VmHWM")
    if now is not None and peak is not None:
        return "VmHWM", now, peak
    return "ru_maxrss", _maximum(), _maximum()


def measure(
    problem: str,
    size: int,
    estimator: str,
    num_directions: int,
    chunk_size: int | None,
) -> dict[str, Any]:
    """Compiles, then runs a few steps and reads the peak."""
    chosen = PROBLEMS[problem](size)
    init, compiled = compile_step(chosen, estimator, num_directions, chunk_size)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), chosen.like)
    params, state = jax.block_until_ready((params, init(params)))
    device = jax.devices()[0]
    if device.platform == "cpu":
        # On the first touch: pages that are only reserved would count for the step.
        touch = lambda x: x + jnp.zeros_like(x)
        state = jax.block_until_ready(jax.tree.map(touch, state))
    _start_peak()
    source, before, _ = memory(device)
    for _ in range(STEPS):
        params, state = jax.block_until_ready(compiled(params, state))
    _, _, peak = memory(device)
    plan = planned(chosen, compiled)
    copies = num_bytes(chosen.like)
    return {
        "problem": chosen.name,
        "read": source,
        "params_bytes": copies,
        "before_bytes": before,
        "peak_bytes": peak,
        "copies": (peak - before) / copies,
        # Params and state are there before, so that they are not in either.
        "planned": plan["total"] - plan["arguments"],
        "device": device.device_kind,
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
