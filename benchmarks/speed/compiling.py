"""What compiling a step costs: tracing, lowering and XLA apart, and sizes of programs.

Times are the processor's, of all threads: other work changes them little.
"""

import contextlib
import functools
import statistics
import tempfile
import time
from collections.abc import Iterator

import jax
import pandas as pd
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.speed import stack
from benchmarks.speed.timing import comparison, device_line
from benchmarks.study import Cell, Row, Tick, plain

QUICK, FULL = (12,), (12, 48)  # layers
REPEATS, PATIENCE = 3, 25.0  # nothing is repeated beyond so many seconds
PHASES = ("trace", "lower", "xla")


@contextlib.contextmanager
def cache(folder: str | None) -> Iterator[None]:
    """Compiled programs are kept in this folder; None for nowhere."""
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


def compiled(program: stack.Program) -> Row:
    """Time until a step can run, with nothing compiled before."""
    step, args, options = program
    jax.clear_caches()
    now = [time.process_time()]
    if options is None:  # that of the first call which the second has not
        for _ in range(2):
            jax.block_until_ready(step(*args))
            now.append(time.process_time())
        return {"ms": 1e3 * (2 * now[1] - now[0] - now[2])}
    stages = [jax.jit(step, **options)]
    for go in (lambda f: f.trace(*args), lambda f: f.lower(), lambda f: f.compile()):
        stages.append(go(stages[-1]))
        now.append(time.process_time())
    given, made = (stage.as_text().count(" = ") for stage in stages[2:])
    row = {name: 1e3 * (now[i + 1] - now[i]) for i, name in enumerate(PHASES)}
    return row | {"ms": sum(row.values()), "given": given, "made": made}


def repeated(name: str, depth: int, seed: int) -> Row:
    """The medians, and how far the repeats are apart."""
    program, found, times = stack.program(name, depth, seed), [], []
    kept = name == stack.CACHED
    with tempfile.TemporaryDirectory() as path, cache(path if kept else None):
        if kept:
            compiled(program)
        while len(found) < REPEATS and sum(times) < 1e3 * PATIENCE:
            found.append(compiled(program))
            times.append(found[-1]["ms"])
    row = {n: statistics.median(r[n] for r in found) for n in found[0]}
    spread = max(times) / min(times) if times[1:] else None
    return row | {"layers": depth, "program": name, "spread": spread}


def measure(depth: int, seed: int, tick: Tick) -> list[Row]:
    """A row for each program."""
    rows: list[Row] = []
    for i, name in enumerate(stack.PROGRAMS):
        tick(i / len(stack.PROGRAMS))
        rows.append(repeated(name, depth, seed) | device_line())
        rows[-1]["ratio"] = rows[-1]["ms"] / rows[0]["ms"]
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each number of layers."""
    depths = FULL if full else QUICK
    return {f"{n} layers": functools.partial(measure, n, seed) for n in depths}


def findings(frame: pd.DataFrame) -> list[str]:
    """XLA is given operations and makes instructions."""
    spread = plain(frame["spread"].max())
    out = [f"Repeats differ by up to {spread} times."]
    for name, part in frame.groupby("cell", sort=False):
        others = part.iloc[1:][["program", "ratio"]].itertuples(index=False)
        said = ", ".join(f"{plain(ratio)} ({program})" for program, ratio in others)
        seconds = plain(part["ms"].iloc[0] / 1e3)
        out.append(f"{name}: {seconds} s before a scanned step; times that: {said}.")
    return out


COLUMNS = (*PHASES, "given", "made", "ms", "ratio")
STUDY = comparison("What compiling costs", cells, findings, COLUMNS)
