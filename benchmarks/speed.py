"""Cost of an estimator's step against bare noise and bare evaluations.

Every program is a jitted scan of whole steps on Rosenbrock with K = 10 directions; the
floor draws ``jax.random.normal((K, d))`` and evaluates f at K points, nothing more. The
programs take turns, so that a change of the machine's speed falls on all of them; a
figure is the median over the turns, a ratio the median of the ratios turn by turn.
"""

from __future__ import annotations

import argparse
import csv
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import zojax
from benchmarks import UsageError, whole_number
from benchmarks.functions import rosenbrock
from zojax.perturbations import gaussian, rademacher

NUM_DIRECTIONS, HISTORY, SMOOTHING = 10, 5, 0.05
FLOOR = "normal((K, d)) + K evaluations"


def floor_step(x: jax.Array, key: jax.Array) -> jax.Array:
    noise = jax.random.normal(key, (NUM_DIRECTIONS, x.size))
    values = jax.vmap(rosenbrock)(x + SMOOTHING * noise)
    return x - 1e-12 * values.mean()  # keeps every value alive


def floor(steps: int) -> Callable[[jax.Array], jax.Array]:
    def run(x):
        body = lambda x, n: (floor_step(x, jax.random.fold_in(key, n)), None)
        return jax.lax.scan(body, x, jnp.arange(steps))[0]

    key = jax.random.key(0)
    return run


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


def programs(steps: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """The floor first, then the steps that are measured against it."""

    def zoar(history_size, sampler, **kwargs):
        estimator = zojax.zoar(
            SMOOTHING,
            NUM_DIRECTIONS,
            key=0,
            history_size=history_size,
            sampler=sampler,
            **kwargs,
        )
        opt = optax.chain(estimator, zojax.radazo(1e-3))
        return training(opt, rosenbrock, steps)

    return {
        FLOOR: floor(steps),
        "ZoAR, gaussian": zoar(HISTORY, gaussian()),
        "ZoAR, Rademacher": zoar(HISTORY, rademacher()),
        "ZoAR, Rademacher, replayed keys": zoar(
            HISTORY, rademacher(), storage="replay"
        ),
        "mean baseline, Rademacher": zoar(0, rademacher()),
    }


def take_turns(
    programs: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each program, turn by turn, after one call each to warm up.

    A program returns what has to be waited for, or None.
    """
    for program in programs.values():
        jax.block_until_ready(program())
    seconds = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """Median of the ratios turn by turn."""
    return statistics.median(t / b for t, b in zip(times, base, strict=True))


def measure(dimension: int, steps: int, repeats: int) -> dict[str, list[float]]:
    """Seconds a step of each program, turn by turn."""
    x = jax.random.normal(jax.random.key(1), (dimension,))
    compiled = {
        name: functools.partial(jax.jit(run), x)
        for name, run in programs(steps).items()
    }
    seconds = take_turns(compiled, repeats)
    return {name: [t / steps for t in times] for name, times in seconds.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dimensions",
        type=whole_number(2),
        nargs="+",
        default=[10_000],
        help="numbers of parameters",
    )
    parser.add_argument(
        "--steps", type=whole_number(1), default=200, help="steps in a scan"
    )
    parser.add_argument(
        "--repeats", type=whole_number(1), default=15, help="turns of each program"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/speed"), help="folder for the CSV"
    )


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    try:
        args.output.mkdir(parents=True, exist_ok=True)
        file = (args.output / "speed.csv").open("w", newline="")
    except OSError as error:
        raise UsageError(f"cannot write to {args.output}: {error.strerror}") from None
    device = jax.devices()[0]
    table = Table(
        title=f"One step on Rosenbrock, K = {NUM_DIRECTIONS}, N = {HISTORY}; "
        f"{device.device_kind}, JAX {jax.__version__}, median of {args.repeats}"
    )
    for column in ("d", "program", "ms a step", "ratio to the floor"):
        table.add_column(column, justify="left" if column == "program" else "right")
    with file:
        writer = csv.writer(file)
        writer.writerow(["dimension", "program", "milliseconds", "ratio"])
        for dimension in args.dimensions:
            seconds = measure(dimension, args.steps, args.repeats)
            for name, times in seconds.items():
                ratio = median_ratio(times, seconds[FLOOR])
                row = f"{1e3 * statistics.median(times):.3f}", f"{ratio:.2f}"
                writer.writerow([dimension, name, *row])
                table.add_row(f"{dimension:,}", name, *row)
            file.flush()
    Console().print(table)
