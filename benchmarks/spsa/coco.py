"""COCO's noisy functions: what is left of f at the recommended point, by method."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.spsa.methods import METHODS, OURS, STEP_SIZES
from benchmarks.spsa.problems import FUNCTIONS, Problems, noise_of
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines, with_error

DIMENSIONS = {False: (5,), True: (2, 5, 10)}
CALLS = {False: 100, True: 500}  # for each dimension
# As many runs to judge as to choose by, so that they are one program.
CHOOSING, JUDGING = (11,), (5, 6, 7, 8, 9)
POINTS = 10  # of a curve
BEST, WORST = 1e-8, 1e2  # shares of the first gap, to which all are limited


def program(method: str, problems: Problems, calls: int) -> Callable:
    """(problem, step size and start of each run, seed) -> shares [POINTS, runs].

    The share of the first gap that is left, after each tenth of the calls; all runs go
    at once. Compiled anew only for another number of them.
    """
    run = METHODS[method](problems.dimension, calls)
    ends = [round(run.num_steps * (n + 1) / POINTS) for n in range(POINTS)]
    begin = jax.jit(jax.vmap(functools.partial(run.begin, problems.value_fn)))
    advance = jax.vmap(functools.partial(run.advance, problems.value_fn))
    found, fold = jax.jit(jax.vmap(run.found)), jax.vmap(jax.random.fold_in, (0, None))

    @jax.jit
    def go(carry, which, keys, first, last):
        body = lambda n, carry: advance(carry, which, fold(keys, n))
        return jax.lax.fori_loop(first, last, body, carry)

    def measure(which, step_sizes, starts, seed):
        keys = jax.random.split(jax.random.key(seed), len(which))
        numbers = jnp.asarray(which)
        carry = begin(starts, numbers, jnp.asarray(step_sizes, jnp.float32), keys)
        at_first, curve = problems.gaps(which, starts), []
        for first, last in itertools.pairwise([0, *ends]):
            carry = go(carry, numbers, keys, first, last)
            gaps = problems.gaps(which, np.asarray(found(carry)))
            curve.append(np.clip(gaps / at_first, BEST, WORST))
        return np.array(curve)

    return measure


def measure(method: str, d: int, full: bool, seed: int, tick: Tick) -> list[Row]:
    """Chooses a step size by some instances; a row for each point of the others."""
    calls = CALLS[full] * d
    choosing, judging = (
        [(f, i) for f in FUNCTIONS for i in some] for some in (CHOOSING, JUDGING)
    )
    problems = Problems(d, choosing + judging)
    runs = program(method, problems, calls)
    # The same starts for all methods.
    rng, size = np.random.default_rng([seed, d]), (len(problems.pairs), d)
    starts = rng.uniform(-4, 4, size).astype(np.float32)
    number = len(choosing)
    which = np.tile(np.arange(number), len(STEP_SIZES))
    left = runs(which, np.repeat(STEP_SIZES, number), starts[which], seed)
    logs = np.log10(left[-1]).reshape(len(STEP_SIZES), number).mean(axis=1)
    step_size = STEP_SIZES[int(logs.argmin())]
    tick(0.5)
    which, before = number + np.arange(len(judging)), problems.num_calls
    left = runs(which, np.full(len(which), step_size), starts[which], seed + 1)
    made = (problems.num_calls - before) / len(which)
    names = {"d": d, "method": method, "step_size": step_size, "calls_made": made}
    return [
        names
        | {"function": f, "instance": i, "noise": noise_of(f)}
        | {"calls": calls * (n + 1) / POINTS, "left": left[n, k]}
        for n in range(POINTS)
        for k, (f, i) in enumerate(judging)
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each dimension and method."""
    return {
        f"d={d}/{method}": functools.partial(measure, method, d, full, seed)
        for d in DIMENSIONS[full]
        for method in METHODS
    }


def ends(frame: pd.DataFrame) -> pd.DataFrame:
    """The judged runs at their end, with the logarithm of what is left."""
    last = frame["calls"] == frame.groupby("d")["calls"].transform("max")
    return frame[last].assign(log=np.log10(frame["left"]))


def summary(part: pd.DataFrame) -> pd.DataFrame:
    """By method: mean logarithm with its error over instances, mean rank, failures."""
    logs = part.pivot_table(
        index=["d", "function", "instance"], columns="method", values="log", sort=False
    )
    # Functions are what they are: the error is that of other instances and noise.
    functions = logs.groupby(level=["d", "function"])
    own, free = logs - functions.transform("mean"), max(len(logs) - len(functions), 1)
    columns = {
        "log": logs.mean(),
        "error": np.sqrt((own**2).sum() / free / len(logs)),
        "mean rank": logs.rank(axis=1).mean(),
        "got worse": (logs > 0).mean().map("{:.0%}".format),
    }
    return pd.DataFrame(columns)


def tables(frame: pd.DataFrame) -> Tables:
    """By dimension, and by kind of noise."""
    end, out = ends(frame), {}
    for column in ("d", "noise"):
        shown = summary(end)[["mean rank", "got worse"]]
        for place, (kind, part) in enumerate(end.groupby(column, sort=False)):
            found = summary(part)
            texts = map(with_error, found["log"], found["error"])
            shown.insert(place, kind, list(texts))
        out[f"log10 of the share of f - min f that is left, by {column}"] = shown
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    """What SPSA's options bring."""
    logs = summary(ends(frame))["log"]
    if f"{OURS}SPSA" not in logs:
        return []
    gains = (logs - logs[f"{OURS}SPSA"]).filter(like=OURS).drop(f"{OURS}SPSA")
    changes = ", ".join(f"{name} {gain:+.2f}" for name, gain in gains.items())
    return [f"Over plain SPSA, in decades of what is left: {changes}."]


def figure(frame: pd.DataFrame) -> Figure:
    """Mean logarithm against calls, by dimension."""
    shown = frame.assign(who=frame["method"].str.split().str[0])
    shown["log10 of what is left"] = np.log10(frame["left"])
    columns = {"x": "calls", "y": "log10 of what is left", "hue": "method"}
    return lines(shown, **columns, style="who", col="d", errorbar=None)


# COCO's noise is one stream of the process: nothing may run beside it.
STUDY = Study("COCO's noisy functions", cells, tables, findings, figure, timed=True)
