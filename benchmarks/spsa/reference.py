"""Ours and noisyopt's SPSA at the same gains: the same errors at the end?"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import noisyopt
import numpy as np
import optax
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from scipy.optimize import rosen

import zojax
from benchmarks.study import Cell, Row, Study, Tables, Tick, mean_error


class Problem(NamedTuple):
    """A function with additive noise, and Spall's gains for it."""

    f: Callable[[np.ndarray], np.ndarray]  # x[..., d] -> f[...]
    dimension: int
    noise: float
    a: float
    c: float


SCALES = np.linspace(1, 10, 10)
PROBLEMS = {
    "quadratic": Problem(
        lambda x: (SCALES * (x - 1) ** 2).sum(-1) / 2, 10, 0.5, 0.1, 0.3
    ),
    "absolute": Problem(lambda x: np.abs(x - 1).sum(-1), 10, 0.1, 0.1, 0.1),
    "Rosenbrock": Problem(lambda x: rosen(np.moveaxis(x, -1, 0)), 4, 0.1, 0.005, 0.05),
}
QUICK, FULL = (100, 200), (500, 1000)  # (runs of each, steps)


def theirs(problem: Problem, runs: int, steps: int, seed: int) -> list[float]:
    """f without noise at the ends of noisyopt's runs, from 0."""
    np.random.seed(seed)  # noqa: NPY002 (noisyopt draws from it)
    rng = np.random.default_rng(seed)
    noisy = lambda x: problem.f(x) + problem.noise * rng.standard_normal()
    gains = {"a": problem.a, "c": problem.c, "niter": steps, "paired": False}
    minimize = noisyopt.minimizeSPSA
    starts = np.zeros((runs, problem.dimension))  # changed in place
    return [problem.f(minimize(noisy, start, **gains).x) for start in starts]


def ours(problem: Problem, runs: int, steps: int, seed: int) -> np.ndarray:
    """The same of ours, all runs at once, asked and told."""
    gains = zojax.spall_gains(problem.a, problem.c, stability=0.01 * steps)
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        keys = jax.random.key_data(jax.random.split(jax.random.key(seed), runs))
        opt = zojax.spsa(*gains, key=0)  # the keys of the runs are in their states
        ask = jax.jit(jax.vmap(opt.ask))

        @jax.jit
        @jax.vmap
        def tell(state, x, values):
            updates, state = opt.update(None, state, x, values=values)
            return optax.apply_updates(x, updates), state

        x = jnp.zeros((runs, problem.dimension))
        state = jax.vmap(lambda key, x: zojax.spsa(*gains, key=key).init(x))(keys, x)
        for _ in range(steps):
            y = problem.f(np.asarray(ask(state, x)))
            y = y + problem.noise * rng.standard_normal(y.shape)
            x, state = tell(state, x, y)
        return problem.f(np.asarray(x))


def measure(name: str, runs: int, steps: int, seed: int, tick: Tick) -> list[Row]:
    """A row for each run of either."""
    rows = []
    for done, run in enumerate((ours, theirs), 1):
        names = {"problem": name, "who": run.__name__, "steps": steps}
        rows += [names | {"end": y} for y in run(PROBLEMS[name], runs, steps, seed)]
        tick(done / 2)
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each problem."""
    size = FULL if full else QUICK
    return {name: functools.partial(measure, name, *size, seed) for name in PROBLEMS}


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """By problem: means, and their distance in standard errors of the difference."""
    ends = frame.groupby(["problem", "who"], sort=False)["end"]
    mean, error = ends.mean().unstack(), ends.sem().unstack()
    apart = (mean["ours"] - mean["theirs"]) / np.hypot(error["ours"], error["theirs"])
    return ends.agg(mean_error).unstack().assign(errors_apart=apart)


def tables(frame: pd.DataFrame) -> Tables:
    """One row a problem."""
    title = f"f without noise after {frame['steps'].iloc[0]} steps of SPSA"
    return {title: summary(frame)}


def findings(frame: pd.DataFrame) -> list[str]:
    """Whether they agree."""
    worst = summary(frame)["errors_apart"].abs().max()
    verdict = "agree" if worst < 3 else "DIFFER"
    return [f"Ours and noisyopt's {verdict}: {worst:.1f} standard errors at most."]


def figure(frame: pd.DataFrame) -> Figure:
    """The distributions of the ends."""
    options = {"hue": "who", "col": "problem", "kind": "ecdf", "log_scale": True}
    shared = {"facet_kws": {"sharex": False}}
    return seaborn.displot(frame, x="end", **options, **shared).figure


# noisyopt draws from numpy's one stream: nothing may run beside it.
STUDY = Study("SPSA beside noisyopt's", cells, tables, findings, figure, timed=True)
