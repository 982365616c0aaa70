"""Ours and noisyopt's SPSA at the same gains: the same errors at the end?"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import noisyopt
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

import zojax
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, tabulate, with_error


class Problem(NamedTuple):
    """A function with additive noise, and Spall's gains for it."""

    f: Callable[[np.ndarray], np.ndarray]  # x[..., d] -> f[...]
    start: np.ndarray
    noise: float
    a: float
    c: float


D = 10
SCALES = np.linspace(1, 10, D)
PROBLEMS = {
    "quadratic": Problem(
        lambda x: (SCALES * (x - 1) ** 2).sum(-1) / 2, np.zeros(D), 0.5, 0.1, 0.3
    ),
    "absolute": Problem(
        lambda x: np.abs(x - 1).sum(-1), np.zeros(D), 0.1, 0.1, 0.1
    ),
    "Rosenbrock": Problem(
        lambda x: (
            100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2
        ).sum(-1),
        np.zeros(4),
        0.1,
        0.005,
        0.05,
    ),
}  # fmt: skip
QUICK, FULL = (100, 200), (500, 1000)  # (runs of each, steps)


def theirs(problem: Problem, runs: int, steps: int, seed: int) -> np.ndarray:
    """f without noise at the ends of noisyopt's runs."""
    np.random.seed(seed)  # noqa: NPY002 (noisyopt draws from it)
    rng, found = np.random.default_rng(seed), []
    noisy = lambda x: problem.f(x) + problem.noise * rng.standard_normal()
    for _ in range(runs):
        end = noisyopt.minimizeSPSA(
            noisy,
            problem.start.copy(),  # changed in place
            niter=steps,
            paired=False,
            a=problem.a,
            c=problem.c,
        )
        found.append(problem.f(end.x))
    return np.array(found)


def ours(problem: Problem, runs: int, steps: int, seed: int) -> np.ndarray:
    """The same of ours, all runs at once, asked and told."""
    gains = zojax.spall_gains(problem.a, problem.c, stability=0.01 * steps)
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        keys = jax.random.key_data(jax.random.split(jax.random.key(seed), runs))
        ask = jax.jit(
            jax.vmap(lambda key, state, x: zojax.spsa(*gains, key=key).ask(state, x))
        )

        @jax.jit
        @jax.vmap
        def tell(key, state, x, values):
            opt = zojax.spsa(*gains, key=key)
            updates, state = opt.update(None, state, x, values=values)
            return optax.apply_updates(x, updates), state

        x = jnp.tile(problem.start, (runs, 1))
        state = jax.vmap(lambda key, x: zojax.spsa(*gains, key=key).init(x))(keys, x)
        for _ in range(steps):
            y = problem.f(np.asarray(ask(keys, state, x)))
            y = y + problem.noise * rng.standard_normal(y.shape)
            x, state = tell(keys, state, x, y)
        return problem.f(np.asarray(x))


def measure(name: str, runs: int, steps: int, seed: int, tick: Tick) -> list[Row]:
    """A row for each run of either."""
    rows = []
    for i, run in enumerate((ours, theirs)):
        found = run(PROBLEMS[name], runs, steps, seed)
        rows += [
            {"problem": name, "who": run.__name__, "run": k, "end": y, "steps": steps}
            for k, y in enumerate(found)
        ]
        tick((i + 1) / 2)
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each problem."""
    runs, steps = FULL if full else QUICK
    return {
        name: functools.partial(measure, name, runs, steps, seed) for name in PROBLEMS
    }


def compared(frame: pd.DataFrame) -> pd.DataFrame:
    """Means with standard errors, and their difference in units of its own."""
    ends = frame.groupby(["problem", "who"], sort=False)["end"]
    mean, error = ends.mean().unstack(), ends.sem().unstack()
    out = pd.DataFrame({"ours": mean["ours"], "theirs": mean["theirs"]})
    out["ours_error"], out["theirs_error"] = error["ours"], error["theirs"]
    both = np.hypot(out["ours_error"], out["theirs_error"])
    out["z"] = (out["ours"] - out["theirs"]) / both
    return out.reset_index()


def tables(frame: pd.DataFrame) -> list[Table]:
    """One row a problem."""
    rows = [
        [
            row.problem,
            with_error(row.ours, row.ours_error),
            with_error(row.theirs, row.theirs_error),
            f"{row.z:+.1f}",
        ]
        for row in compared(frame).itertuples()
    ]
    runs, steps = frame["run"].max() + 1, frame["steps"].iloc[0]
    title = f"f without noise after {steps} steps of SPSA, mean of {runs} runs"
    columns = ["", "zojax.spsa", "noisyopt", "difference,\nstandard errors"]
    return [tabulate(title, columns, rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    """Whether they agree."""
    worst = compared(frame)["z"].abs().max()
    verdict = "agree" if worst < 3 else "DIFFER"
    return [f"Ours and noisyopt's {verdict}: {worst:.1f} standard errors at most."]


def figure(frame: pd.DataFrame) -> Figure:
    """The distributions of the ends."""
    problems = list(frame.groupby("problem", sort=False))
    out = Figure(figsize=(3.6 * len(problems), 3), layout="constrained")
    axes = out.subplots(1, len(problems), squeeze=False)[0]
    for axis, (name, part) in zip(axes, problems, strict=True):
        for colour, (who, rows) in zip(COLOURS, part.groupby("who"), strict=False):
            ends = np.sort(rows["end"])
            share = np.arange(1, len(ends) + 1) / len(ends)
            axis.plot(ends, share, color=colour, label=who)
        axis.set(title=name, xlabel="f at the end", xscale="log")
    axes[0].set(ylabel="share of runs")
    axes[0].legend(frameon=False)
    return out


# noisyopt draws from numpy's one stream: nothing may run beside it.
STUDY = Study("SPSA beside noisyopt's", cells, tables, findings, figure, timed=True)
