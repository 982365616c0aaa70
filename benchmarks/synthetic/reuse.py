"""What a history is worth on a bowl that moves, and on one whose values are noisy.

The bowl is |x - c_t|^2 / 2. Every coordinate of c_t moves by the speed a step: R-AdaZO
moves a coordinate by about its step size, so that a speed near it is as fast as can be
followed. Noise is fresh at every call of f, in units of mu sqrt(d), which is what a
query sees of the bowl at the start, mu |grad f|.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure

import zojax
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines, plain
from benchmarks.synthetic.runs import NUM_DIRECTIONS, SMOOTHING, STEPS

QUICK, FULL = (500, 2000), (2000, 10_000)  # d, iterations
SPEED, NOISE = "speed", "noise"
AMOUNTS = {SPEED: (0.0, 3e-4, 1e-3, 3e-3), NOISE: (0.0, 0.1, 1.0, 10.0, 100.0)}
HISTORIES = {SPEED: (0, 1, 2, 5, 10, 20), NOISE: (0, 5, 20)}
# Where noise dominates, the best steps are small.
STEP_SIZES = {SPEED: STEPS, NOISE: (3e-5, 1e-4, *STEPS)}
PART = {SPEED: 2, NOISE: 10}  # the loss is the mean over the last half, or tenth
SEEDS = 3


def fresh_noise(x: jax.Array, key: jax.Array) -> jax.Array:
    """A standard normal number that depends on a hash of x and on the key."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    return jax.random.normal(jax.random.fold_in(key, jnp.sum(bits * odd)))


def mean_loss(trouble, history_size, dimension, iterations, seed, amount, step_size):
    """Noiseless loss at the iterates of the last part of a run, f[]."""
    start_key, *keys = jax.random.split(jax.random.key(seed), 3)
    key, trouble_key = keys if trouble == NOISE else keys[::-1]
    x = jax.random.normal(start_key, (dimension,))
    way = jax.random.rademacher(trouble_key, (dimension,), x.dtype)
    speed, noise = (amount, 0.0) if trouble == SPEED else (0.0, amount)
    scale = noise * SMOOTHING * jnp.sqrt(dimension)
    zoar = zojax.zoar(SMOOTHING, NUM_DIRECTIONS, key=key, history_size=history_size)
    opt = optax.chain(zoar, zojax.radazo(step_size))

    def step(carry, count):
        x, state = carry
        step_key = jax.random.fold_in(trouble_key, count)
        bowl = lambda x: 0.5 * jnp.sum((x - speed * count * way) ** 2)
        asked = lambda x: bowl(x) + scale * fresh_noise(x, step_key)
        updates, state = opt.update(None, state, x, value_fn=asked)
        return (optax.apply_updates(x, updates), state), bowl(x)

    _, losses = jax.lax.scan(step, (x, opt.init(x)), jnp.arange(iterations))
    return jnp.mean(losses[-iterations // PART[trouble] :])


def descend(
    trouble: str, history_size: int, full: bool, seed: int, tick: Tick
) -> list[Row]:
    """All amounts and step sizes of a seed share its noise and one program."""
    one = functools.partial(
        mean_loss, trouble, history_size, *(FULL if full else QUICK)
    )
    program = jax.jit(jax.vmap(jax.vmap(one, (None, None, 0)), (None, 0, None)))
    amounts, step_sizes = AMOUNTS[trouble], STEP_SIZES[trouble]
    names = {"trouble": trouble, "history_size": history_size}
    rows = []
    for done in range(SEEDS):
        numbers = map(jnp.asarray, (SEEDS * seed + done, amounts, step_sizes))
        rows += [
            names
            | {"amount": amounts[i], "step_size": step_sizes[j], "loss": float(loss)}
            for (i, j), loss in np.ndenumerate(np.asarray(program(*numbers)))
        ]
        tick((done + 1) / SEEDS)
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each trouble and history size."""
    return {
        f"{trouble}/N = {n}": functools.partial(descend, trouble, n, full, seed)
        for trouble, histories in HISTORIES.items()
        for n in histories
    }


def means(frame: pd.DataFrame) -> pd.DataFrame:
    """Over seeds, a column a history size."""
    keys = ["trouble", "amount", "step_size"]
    return frame.pivot_table("loss", keys, "history_size", sort=False)


def tables(frame: pd.DataFrame) -> Tables:
    """At the best step size of each history."""
    best = means(frame).groupby(level=[0, 1], sort=False).min()
    return {
        f"Loss at the best step size, by {trouble} and N": part.droplevel(0).dropna(
            axis=1
        )
        for trouble, part in best.groupby(level=0, sort=False)
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """Each history over none, at its best step size and at the best of none."""
    text = []
    for (trouble, amount), part in means(frame).groupby(level=[0, 1], sort=False):
        part = part.dropna(axis=1)
        best, same = part.min(), part.loc[part[0].idxmin()]
        best, same = best / best[0], same / same[0]
        text.append(
            f"{trouble} {amount:g}, over the loss of N = 0: N = {best.idxmin()} at best"
            f" {plain(best.min())}, N = 20 {plain(best[20])}; N = 20 at the best step"
            f" size of N = 0 {plain(same[20])}."
        )
    return text


def figure(frame: pd.DataFrame) -> Figure:
    """By history size at the best step size, a panel for each trouble."""
    best = means(frame).groupby(level=[0, 1]).min().stack().rename("loss").reset_index()
    axes = {"x": "history_size", "y": "loss", "hue": "amount", "col": "trouble"}
    return lines(best, "y", **axes)


STUDY = Study("A history, motion and noise", cells, tables, findings, figure)
