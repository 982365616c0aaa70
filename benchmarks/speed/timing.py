"""How programs are timed: in turns, by medians of the ratios turn by turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

__all__ = ["device_line", "exponent", "median_ratio", "take_turns", "training"]


def training(
    opt: optax.GradientTransformationExtraArgs,
    f: Callable[[jax.Array], jax.Array],
    steps: int,
) -> Callable[[jax.Array], jax.Array]:
    """Whole steps in a scan: x -> x after the steps."""

    def step(carry, _):
        x, state = carry
        updates, state = opt.update(None, state, x, value_fn=f)
        return (optax.apply_updates(x, updates), state), None

    return lambda x: jax.lax.scan(step, (x, opt.init(x)), length=steps)[0][0]


def take_turns(
    programs: Mapping[str, Callable[[], Any]],
    repeats: int,
    tick: Callable[[float], None] = lambda share: None,
) -> dict[str, list[float]]:
    """Seconds of each program, turn by turn, after one call each to warm up.

    A program returns what has to be waited for, or None.
    """
    for program in programs.values():
        jax.block_until_ready(program())
    seconds = {name: [] for name in programs}
    for turn in range(repeats):
        tick((turn + 1) / (repeats + 1))
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """Median of the ratios turn by turn."""
    return statistics.median(t / b for t, b in zip(times, base, strict=True))


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The p of seconds ~ sizes^p, fitted by least squares to the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def device_line() -> dict[str, str]:
    """Where a row was measured, as columns of it."""
    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
