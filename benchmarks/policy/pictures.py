"""Episodes as strips of snapshots, before and after a policy was tuned."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
import pandas as pd
from jax.flatten_util import ravel_pytree
from matplotlib.axes import Axes

from benchmarks.policy.tasks import Player, Task, make
from benchmarks.policy.worlds import hill
from benchmarks.study import COLOURS

__all__ = ["before_and_after", "snapshots"]

SNAPSHOTS = 8
EPISODE = 7  # key of the one that is shown
TUNED, UNTUNED, GROUND = COLOURS[0], COLOURS[1], COLOURS[7]
# How far apart snapshots are put, and the height of a line to reach; where there is no
# distance they lie on the road.
APART = {"CartPole-v1": 1.2, "Acrobot-v1": 2.7, "hopper": 0.75}
TO_REACH = {"Acrobot-v1": 1.0}
GOAL = 0.45  # of the mountain car


def snapshots(film: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(Steps, states) at equal distances in time, of those before the end."""
    lived = int(np.isfinite(film).all(axis=(1, 2, 3)).sum())
    steps = np.unique(np.linspace(0, lived - 1, number).round().astype(int))
    return steps, film[steps]


def _on_the_road(axis: Axes, states: np.ndarray, colour: str) -> None:
    x = np.linspace(-1.2, 0.6, 200)
    axis.plot(x, hill(x), color=GROUND, linewidth=1)
    axis.plot([GOAL, GOAL], [hill(GOAL), hill(GOAL) + 0.45], color="black")
    axis.plot(GOAL + 0.05, hill(GOAL) + 0.38, ">", color="black", markersize=6)
    fade = np.linspace(0.2, 1, len(states))  # later ones are darker
    axis.scatter(*states[:, 0, 0].T, s=36, color=colour, alpha=fade, zorder=3)
    axis.set_ylim(-0.1, 1.6)


def _side_by_side(axis: Axes, task: Task, states: np.ndarray, colour: str) -> None:
    apart = APART[task.name]
    if task.name in TO_REACH:
        axis.axhline(TO_REACH[task.name], color=GROUND, linewidth=1, linestyle=":")
    else:
        axis.axhline(0, color=GROUND, linewidth=1)
    for i, lines in enumerate(states):
        for line in lines:
            axis.plot(
                line[:, 0] + i * apart,
                line[:, 1],
                color=colour,
                linewidth=2.5,
                solid_capstyle="round",
            )
    axis.set_aspect("equal", adjustable="datalim")


def _strip(axis: Axes, task: Task, gained: float, film: np.ndarray, title: str) -> None:
    colour = TUNED if title == "after" else UNTUNED
    steps, states = snapshots(film, SNAPSHOTS)
    if task.name in APART:
        _side_by_side(axis, task, states, colour)
    else:
        _on_the_road(axis, states, colour)
    axis.set_title(f"{title}: {steps[-1]} steps, return {round(gained)}", fontsize=10)
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)


def _as_params(player: Player, text: str) -> object:
    """The policy whose numbers a row has."""
    _, unravel = ravel_pytree(player.init(jax.random.key(0)))
    return unravel(np.array(text.split(), np.float32))


def before_and_after(axes: Sequence[Axes], task: Task, row: pd.Series) -> None:
    """The same episode by the policies of a row, on an axis each."""
    player = make(task)
    film = jax.jit(player.film)
    for axis, title in zip(axes, ("before", "after"), strict=True):
        params = _as_params(player, row[title])
        gained, states = film(params, jax.random.key(EPISODE))
        _strip(axis, task, float(gained), np.asarray(states), title)
