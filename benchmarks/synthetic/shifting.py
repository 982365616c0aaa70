"""A bowl that moves: what a history costs when the objective does not wait.

f_t(x) = |x - c_t|^2 / 2, every coordinate of c_t moving by `speed` a step, in units of
x. R-AdaZO moves a coordinate by about its step size, so that a speed near the step size
is as fast as can be followed at all.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pandas as pd
from matplotlib.figure import Figure

import zojax
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines, plain
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
    dimension: int,
    iterations: int,
    seed: jax.Array,
    speed: jax.Array,
    step_size: jax.Array,
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


def follow(history_size: int, full: bool, seed: int, tick: Tick) -> list[Row]:
    """All speeds, step sizes and seeds at once."""
    one = functools.partial(mean_loss, history_size, *(FULL if full else QUICK))
    seeds = range(SEEDS * seed, SEEDS * (seed + 1))
    found = sweep(one, SPEEDS, STEPS, seeds, tick)
    return [
        {"history_size": history_size, "speed": row.pop("value")} | row for row in found
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each history size."""
    return {f"history-{n}": functools.partial(follow, n, full, seed) for n in HISTORIES}


def tables(frame: pd.DataFrame) -> Tables:
    """By step size and history, for each speed."""
    return {
        f"Mean loss over the second half; the bowl moves by {speed:g} a step, by N": (
            part.pivot_table(index="step_size", columns="history_size", values="loss")
        )
        for speed, part in frame.groupby("speed")
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """The best history at each speed, and the price of a long one."""
    text = []
    for speed, part in frame.groupby("speed"):
        means = part.pivot_table(
            index="step_size", columns="history_size", values="loss"
        )
        best, step = means.min(), means[0].idxmin()
        text.append(
            f"Speed {speed:g}: with its best step size N = {best.idxmin()} has the"
            f" least loss, {plain(best.min())}, N = 0 {plain(best[0])}, N = 20"
            f" {plain(best[20])}; at the best step size of N = 0 ({step:g}) N = 20 has"
            f" {means.loc[step, 20] / means.loc[step, 0]:.1f} times the loss of N = 0."
        )
    return text


def figure(frame: pd.DataFrame) -> Figure:
    """A panel for each speed."""
    axes = {"x": "history_size", "y": "loss", "hue": "step_size", "col": "speed"}
    return lines(frame, "y", **axes)


STUDY = Study("A moving bowl: history and step size", cells, tables, findings, figure)
