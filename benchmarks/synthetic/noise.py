"""Noise on f from none to dominating, and an objective made of steps.

The noise is fresh at every call of f: it is drawn from a key of the step and a hash of
the point. Its scale is in units of mu sqrt(d), which is what a query sees of the
quadratic at the start, mu |grad f|. The staircase rounds every coordinate to a multiple
of 1, twenty times mu: it has no gradient anywhere but jumps.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.functions import quadratic
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines
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
    dimension: int,
    iterations: int,
    seed: jax.Array,
    noise: jax.Array,
    step_size: jax.Array,
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
        key = jax.random.fold_in(noise_key, count)
        updates, state = opt.update(None, state, x, value_fn=noisy, step_key=key)
        return (optax.apply_updates(x, updates), state), f(x)

    _, losses = jax.lax.scan(step, (x, opt.init(x)), jnp.arange(iterations))
    return jnp.mean(losses[-iterations // 10 :])


def descend(
    objective: str, method: str, full: bool, seed: int, tick: Tick
) -> list[Row]:
    """All noises and step sizes at once."""
    size = FULL if full else QUICK
    one = functools.partial(final_loss, OBJECTIVES[objective], method, *size)
    seeds = range(SEEDS * seed, SEEDS * (seed + 1))
    found = sweep(one, NOISES, STEP_SIZES, seeds, tick)
    names = {"objective": objective, "method": method}
    return [names | {"noise": row.pop("value")} | row for row in found]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each objective and method."""
    return {
        f"{f}/{m}": functools.partial(descend, f, m, full, seed)
        for f in OBJECTIVES
        for m in NAMES
    }


def best(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds at the best step size: method by noise, for each objective."""
    keys = ["objective", "method", "noise"]
    means = frame.groupby([*keys, "step_size"], sort=False)["loss"].mean()
    return means.groupby(keys, sort=False).min().unstack("noise")


def tables(frame: pd.DataFrame) -> Tables:
    """By noise, in units of what a query sees at the start."""
    title = "loss at the end, best step size of the grid, by noise"
    found = best(frame)
    return {f"{name}: {title}": found.loc[name] for name in frame["objective"].unique()}


def findings(frame: pd.DataFrame) -> list[str]:
    """The method of the least loss, unless another is within 2% of it."""
    text = []
    for objective, found in best(frame).groupby("objective"):
        found = found.droplevel("objective")
        least = {}
        for noise, losses in found.items():
            first, second = losses.nsmallest(2)
            least[noise] = losses.idxmin() if first < 0.98 * second else "a tie"
        winners = ", ".join(f"{noise:g}: {name}" for noise, name in least.items())
        ratio = found.loc["zoar-20"] / found.loc["mean"]
        text.append(
            f"{objective}, least loss by noise: {winners}; ZoAR N = 20 over the mean"
            f" baseline: {', '.join(f'{x:.2f}' for x in ratio)}."
        )
    return text


def figure(frame: pd.DataFrame) -> Figure:
    """A panel for each objective."""
    found = best(frame).stack().rename("loss").reset_index()
    found["noise"] = found["noise"].map("{:g}".format)
    return lines(found, "y", x="noise", y="loss", hue="method", col="objective")


STUDY = Study("Noise on f, and steps", cells, tables, findings, figure)
