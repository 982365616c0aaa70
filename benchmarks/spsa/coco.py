"""COCO's noisy functions: what is left of f at the recommended point, by method."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.spsa.methods import METHODS, OURS, STEP_SIZES
from benchmarks.spsa.problems import FUNCTIONS, MODERATE, Problems, noise_of
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, tabulate, with_error

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
    pairs = [[(f, i) for f in FUNCTIONS for i in some] for some in (CHOOSING, JUDGING)]
    problems = Problems(d, pairs[0] + pairs[1])
    runs = program(method, problems, calls)
    # The same starts for all methods.
    rng, size = np.random.default_rng([seed, d]), (len(problems.pairs), d)
    starts = rng.uniform(-4, 4, size).astype(np.float32)
    number = len(pairs[0])
    which = np.tile(np.arange(number), len(STEP_SIZES))
    left = runs(which, np.repeat(STEP_SIZES, number), starts[which], seed)
    logs = np.log10(left[-1]).reshape(len(STEP_SIZES), number).mean(axis=1)
    step_size = STEP_SIZES[int(logs.argmin())]
    tick(0.5)
    which, before = number + np.arange(len(pairs[1])), problems.num_calls
    left = runs(which, np.full(len(which), step_size), starts[which], seed + 1)
    made = (problems.num_calls - before) / len(which)
    return [
        {
            "d": d,
            "method": method,
            "function": f,
            "instance": i,
            "noise": noise_of(f),
            "moderate": f in MODERATE,
            "step_size": step_size,
            "share_of_calls": (n + 1) / POINTS,
            "left": left[n, k],
            "calls": made,
            "budget": calls,
        }
        for n in range(POINTS)
        for k, (f, i) in enumerate(pairs[1])
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
    out = frame[frame["share_of_calls"] == 1].copy()
    out["log"] = np.log10(out["left"])
    return out


def summary(part: pd.DataFrame) -> pd.DataFrame:
    """By method: mean logarithm with its error over instances, mean rank, failures."""
    logs = part.pivot_table(
        index=["d", "function", "instance"], columns="method", values="log", sort=False
    )
    # Functions are what they are: the error is that of other instances and noise.
    own = logs - logs.groupby(level=["d", "function"]).transform("mean")
    groups = len(logs.groupby(level=["d", "function"]))
    free = max(len(logs) - groups, 1)
    error = np.sqrt((own**2).sum() / free / len(logs))
    return pd.DataFrame(
        {
            "log": logs.mean(),
            "error": error,
            "rank": logs.rank(axis=1).mean(),
            "worse": (logs > 0).mean(),
        }
    )


def tables(frame: pd.DataFrame) -> list[Table]:
    """By dimension, and by kind of noise."""
    end = ends(frame)
    first = frame.iloc[0]
    parts = {f"d = {d}": part for d, part in end.groupby("d")}
    moderate = end["moderate"].astype(bool)
    kinds = {"moderate": end[moderate]}
    kinds |= dict(list(end[~moderate].groupby("noise", sort=False)))
    out = []
    for title, some in (("by dimension", parts), ("by noise, severe", kinds)):
        found = {name: summary(part) for name, part in some.items()}
        whole = summary(end)
        rows = [
            [
                method,
                *(
                    with_error(part.loc[method, "log"], part.loc[method, "error"])
                    for part in found.values()
                ),
                f"{whole.loc[method, 'rank']:.1f}",
                f"{whole.loc[method, 'worse']:.0%}",
            ]
            for method in whole.index
        ]
        columns = ["", *found, "mean\nrank", "got\nworse"]
        heading = f"log10 of the share of f - min f that is left, {title}"
        out.append(tabulate(heading, columns, rows))
    sizes = end.groupby(["method", "d"], sort=False)["step_size"].first().unstack()
    rows = [[method, *map("{:g}".format, row)] for method, row in sizes.iterrows()]
    columns = ["", *(f"d = {d}" for d in sizes.columns)]
    out.append(tabulate("Step sizes that were chosen", columns, rows))
    out[-1].caption = (
        f"{first['budget'] // first['d']} d calls; {end['function'].nunique()}"
        f" functions, {end['instance'].nunique()} instances; step sizes of"
        f" {STEP_SIZES} (evosax: first deviations of ten times these) chosen by others."
    )
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    """Our best against evosax's best, by dimension; what SPSA's options bring."""
    end, out = ends(frame), []
    for d, part in end.groupby("d"):
        found = summary(part)
        ours = found.index.str.startswith(OURS)
        us, them = (
            rows.loc[rows["log"].idxmin()] for rows in (found[ours], found[~ours])
        )
        gap, error = us["log"] - them["log"], np.hypot(us["error"], them["error"])
        verdict = "within two standard errors"
        if abs(gap) > 2 * error:
            verdict = "ahead" if gap < 0 else "BEHIND"
        out.append(
            f"d = {d}: {us.name} leaves 10^{us['log']:.2f}, {them.name}"
            f" 10^{them['log']:.2f}: {verdict}."
        )
    whole = summary(end)["log"]
    plain = f"{OURS}SPSA"
    if plain not in whole:
        return out
    changes = ", ".join(
        f"{name.removeprefix(OURS)} {log - whole[plain]:+.2f}"
        for name, log in whole.items()
        if name.startswith(OURS) and name != plain
    )
    out.append(f"Over plain SPSA's 10^{whole[plain]:.2f}, in decades: {changes}.")
    return out


def figure(frame: pd.DataFrame) -> Figure:
    """Mean logarithm against calls, by dimension."""
    parts = list(frame.assign(log=np.log10(frame["left"])).groupby("d"))
    out = Figure(figsize=(3 * len(parts) + 2, 3.8), layout="constrained")
    axes = out.subplots(1, len(parts), squeeze=False, sharey=True)[0]
    for axis, (d, part) in zip(axes, parts, strict=True):
        methods = part.groupby("method", sort=False)
        for colour, (method, rows) in zip(COLOURS, methods, strict=False):
            curve = rows.groupby("share_of_calls")["log"].mean()
            style = "-" if method.startswith(OURS) else "--"
            calls = [0, *(curve.index * rows["budget"].iloc[0])]
            axis.plot(calls, [0, *curve], style, color=colour, label=method)
        axis.set(title=f"d = {d}", xlabel="calls of f")
        axis.grid(alpha=0.25)
    axes[0].set(ylabel="log10 of f - min f, over that of the start")
    lines = axes[0].get_legend_handles_labels()
    out.legend(*lines, loc="outside right center", frameon=False, fontsize=8)
    return out


# COCO's noise is one stream of the process: nothing may run beside it.
STUDY = Study("COCO's noisy functions", cells, tables, findings, figure, timed=True)
