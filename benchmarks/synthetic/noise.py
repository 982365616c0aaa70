"""Noise on f from none to dominating, and an objective made of steps.

The noise is fresh at every call of f: it is drawn from a key of the step and a hash of
the point. Its scale is in units of mu sqrt(d), which is what a query sees of the
quadratic at the start, mu |grad f|. The staircase rounds every coordinate to a multiple
of 1, twenty times mu: it has no gradient anywhere but jumps.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.functions import quadratic
from benchmarks.study import COLOURS, Cell, Row, Study, plain, tabulate
from benchmarks.synthetic.runs import METHODS, SMOOTHING, STEPS, optimizer, sweep

QUICK, FULL = (500, 2000), (2000, 10_000)  # d, iterations
NOISES = (0.0, 0.1, 1.0, 10.0, 100.0)
NAMES = ("vanilla", "mean", "zoar-5", "zoar-20", "mean-rademacher", "recommended")
SEEDS = 3
# Where noise dominates, the best steps are small.
STEP_SIZES = (3e-5, 1e-4, *STEPS)


def staircase(x: jax.Array) -> jax.Array:
    """The quadratic of the rounded point."""
    return quadratic(jnp.round(x))


OBJECTIVES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quadratic": quadratic,
    "staircase": staircase,
}


def fresh_noise(x: jax.Array, key: jax.Array) -> jax.Array:
    """A standard normal number that depends on a hash of x and on the key."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    return jax.random.normal(jax.random.fold_in(key, jnp.sum(bits * odd)))


def final_loss(
    f: Callable[[jax.Array], jax.Array],
    method: str,
    *,
    dimension: int,
    iterations: int,
    noise: jax.Array,
    step_size: jax.Array,
    seed: jax.Array,
) -> jax.Array:
    """Noiseless loss at the end of a run, mean of its last tenth."""
    start_key, key, noise_key = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(start_key, (dimension,))
    scale = noise * SMOOTHING * jnp.sqrt(dimension)
    opt = optimizer(METHODS[method], key, step_size, iterations)

    def noisy(x, step_key):
        return f(x) + scale * fresh_noise(x, step_key)

    def step(carry, count):
        x, state = carry
        updates, state = opt.update(
            None,
            state,
            x,
            value_fn=noisy,
            step_key=jax.random.fold_in(noise_key, count),
        )
        return (optax.apply_updates(x, updates), state), f(x)

    _, losses = jax.lax.scan(step, (x, opt.init(x)), jnp.arange(iterations))
    return jnp.mean(losses[-iterations // 10 :])


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each objective and method: all noises and step sizes at once."""
    dimension, iterations = FULL if full else QUICK

    def cell(objective, method):
        def run(tick) -> list[Row]:
            def one(seed, noise, step_size):
                return final_loss(
                    OBJECTIVES[objective],
                    method,
                    dimension=dimension,
                    iterations=iterations,
                    noise=noise,
                    step_size=step_size,
                    seed=seed,
                )

            numbers = range(SEEDS * seed, SEEDS * (seed + 1))
            losses = sweep(one, NOISES, STEP_SIZES, numbers, tick)
            return [
                {
                    "objective": objective,
                    "method": method,
                    "noise": NOISES[j],
                    "step_size": STEP_SIZES[k],
                    "seed": numbers[i],
                    "loss": float(loss),
                }
                for (i, j, k), loss in np.ndenumerate(losses)
            ]

        return run

    return {f"{f}/{m}": cell(f, m) for f in OBJECTIVES for m in NAMES}


def _best(frame: pd.DataFrame) -> pd.Series:
    """Mean over seeds at the best step size, by objective, method and noise."""
    keys = ["objective", "method", "noise"]
    return frame.groupby([*keys, "step_size"])["loss"].mean().groupby(keys).min()


def tables(frame: pd.DataFrame) -> list[Table]:
    best = _best(frame)
    out = []
    for objective in OBJECTIVES:
        rows = [
            [
                METHODS[name].label,
                *(plain(best[objective, name, noise]) for noise in NOISES),
            ]
            for name in NAMES
        ]
        columns = ["", *(f"noise {noise:g}" for noise in NOISES)]
        title = f"{objective}: loss at the end, best step size of the grid"
        out.append(tabulate(title, columns, rows))
    return out


def _winner(losses: pd.Series) -> str:
    """The method of the least loss, unless another is within 2% of it."""
    first, second = losses.nsmallest(2)
    return METHODS[losses.idxmin()].label if first < 0.98 * second else "a tie"


def findings(frame: pd.DataFrame) -> list[str]:
    best = _best(frame)
    text = []
    for objective in OBJECTIVES:
        by_noise = best[objective].unstack("noise")
        winners = ", ".join(
            f"{noise:g}: {_winner(by_noise[noise])}" for noise in NOISES
        )
        ratio = ", ".join(
            f"{best[objective, 'zoar-20', noise] / best[objective, 'mean', noise]:.2f}"
            for noise in NOISES
        )
        text.append(
            f"{objective}, least loss by noise: {winners}; ZoAR N = 20 over the mean"
            f" baseline: {ratio}."
        )
    return text


def figure(frame: pd.DataFrame) -> Figure:
    best = _best(frame)
    out = Figure(figsize=(9, 4), layout="constrained")
    axes = out.subplots(1, len(OBJECTIVES), squeeze=False)[0]
    for axis, objective in zip(axes, OBJECTIVES, strict=True):
        for colour, name in zip(COLOURS, NAMES, strict=False):
            axis.plot(
                range(len(NOISES)),
                [best[objective, name, noise] for noise in NOISES],
                marker="o",
                color=colour,
                label=METHODS[name].label,
            )
        axis.set(
            yscale="log",
            title=objective,
            xlabel="noise of f over μ√d",
        )
        axis.set_xticks(range(len(NOISES)), [f"{noise:g}" for noise in NOISES])
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("loss at the end, without noise")
    axes[-1].legend(frameon=False, fontsize=8)
    return out


STUDY = Study("Noise on f, and steps", cells, tables, findings, figure)
