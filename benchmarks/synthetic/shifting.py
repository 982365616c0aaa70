"""A bowl that moves: what a history costs when the objective does not wait.

f_t(x) = |x - c_t|^2 / 2, every coordinate of c_t moving by `speed` a step, in units of
x. R-AdaZO moves a coordinate by about its step size, so that a speed near the step size
is as fast as can be followed at all.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

import zojax
from benchmarks.study import COLOURS, Cell, Row, Study, plain, tabulate
from benchmarks.synthetic.runs import NUM_DIRECTIONS, SMOOTHING, STEPS, sweep

QUICK, FULL = (500, 2000), (2000, 10_000)  # d, iterations
SPEEDS = (0.0, 3e-4, 1e-3, 3e-3)
HISTORIES = (0, 1, 2, 5, 10, 20)
SEEDS = 3


def bowl(x: jax.Array, centre: jax.Array) -> jax.Array:
    """|x - centre|^2 / 2."""
    return 0.5 * jnp.sum((x - centre) ** 2)


def mean_loss(
    history_size: int,
    *,
    dimension: int,
    iterations: int,
    speed: jax.Array,
    step_size: jax.Array,
    seed: jax.Array,
) -> jax.Array:
    """Mean loss over the second half of a run, at the iterates."""
    start_key, way_key, noise_key = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(start_key, (dimension,))
    way = jax.random.rademacher(way_key, (dimension,), x.dtype)
    opt = optax.chain(
        zojax.zoar(SMOOTHING, NUM_DIRECTIONS, key=noise_key, history_size=history_size),
        zojax.radazo(step_size),
    )

    def step(carry, count):
        x, state = carry
        centre = speed * count * way
        loss = bowl(x, centre)
        updates, state = opt.update(None, state, x, value_fn=bowl, centre=centre)
        return (optax.apply_updates(x, updates), state), loss

    _, losses = jax.lax.scan(step, (x, opt.init(x)), jnp.arange(iterations))
    return jnp.mean(losses[iterations // 2 :])


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each history size: all speeds, step sizes and seeds at once."""
    dimension, iterations = FULL if full else QUICK

    def cell(history_size):
        def run(tick) -> list[Row]:
            def one(seed, speed, step_size):
                return mean_loss(
                    history_size,
                    dimension=dimension,
                    iterations=iterations,
                    speed=speed,
                    step_size=step_size,
                    seed=seed,
                )

            numbers = range(SEEDS * seed, SEEDS * (seed + 1))
            losses = sweep(one, SPEEDS, STEPS, numbers, tick)
            return [
                {
                    "history_size": history_size,
                    "speed": SPEEDS[j],
                    "step_size": STEPS[k],
                    "seed": numbers[i],
                    "loss": float(loss),
                }
                for (i, j, k), loss in np.ndenumerate(losses)
            ]

        return run

    return {f"history-{n}": cell(n) for n in HISTORIES}


def _means(frame: pd.DataFrame) -> pd.Series:
    return frame.groupby(["speed", "step_size", "history_size"])["loss"].mean()


def tables(frame: pd.DataFrame) -> list[Table]:
    means = _means(frame)
    out = []
    for speed in SPEEDS:
        rows = [
            [f"{step:g}", *(plain(means[speed, step, n]) for n in HISTORIES)]
            for step in STEPS
        ]
        columns = ["step size", *(f"N = {n}" for n in HISTORIES)]
        title = f"Mean loss over the second half; the bowl moves by {speed:g} a step"
        out.append(tabulate(title, columns, rows))
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    means = _means(frame)
    text = []
    for speed in SPEEDS:
        # For each history the best of the grid, then the best history.
        best = means[speed].groupby("history_size").min()
        worst = means[speed].unstack("history_size")
        step = worst[0].idxmin()
        text.append(
            f"Speed {speed:g}: with its best step size N = {best.idxmin()} has the"
            f" least loss, {plain(best.min())}, N = 0 {plain(best[0])}, N = 20"
            f" {plain(best[20])}; at the best step size of N = 0 ({step:g}) N = 20 has"
            f" {worst.loc[step, 20] / worst.loc[step, 0]:.1f} times the loss of N = 0."
        )
    return text


def figure(frame: pd.DataFrame) -> Figure:
    means = _means(frame)
    out = Figure(figsize=(3.2 * len(SPEEDS), 3.7), layout="constrained")
    axes = out.subplots(1, len(SPEEDS), squeeze=False)[0]
    for axis, speed in zip(axes, SPEEDS, strict=True):
        for colour, step in zip(COLOURS, STEPS, strict=False):
            losses = [means[speed, step, n] for n in HISTORIES]
            axis.plot(
                range(len(HISTORIES)),
                losses,
                marker="o",
                color=colour,
                label=f"step size {step:g}",
            )
        axis.set(
            yscale="log",
            title=f"the bowl moves by {speed:g} a step",
            xlabel="history N",
        )
        axis.set_xticks(range(len(HISTORIES)), map(str, HISTORIES))
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("mean loss, second half of the run")
    axes[-1].legend(frameon=False, fontsize=8)
    return out


STUDY = Study("A moving bowl: history and step size", cells, tables, findings, figure)
