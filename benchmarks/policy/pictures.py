"""Episodes as strips of snapshots, before and after a policy was tuned."""

from collections.abc import Sequence

import jax
import numpy as np
import pandas as pd
from jax.flatten_util import ravel_pytree
from matplotlib.axes import Axes

from benchmarks.policy.tasks import Task, make
from benchmarks.policy.worlds import hill
from benchmarks.study import COLOURS

SNAPSHOTS = 8
EPISODE = 7  # key of the one that is shown
# How far apart snapshots are put; those of the mountain car lie on its road.
APART = {"CartPole-v1": 1.2, "Acrobot-v1": 2.7, "hopper": 0.75}
GOAL = 0.45  # of the mountain car


def snapshots(film: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(Steps, states) at equal distances in time, of those before the end."""
    lived = int(np.isfinite(film).all(axis=(1, 2, 3)).sum())
    steps = np.unique(np.linspace(0, lived - 1, number).round().astype(int))
    return steps, film[steps]


def _scene(axis: Axes, name: str) -> None:
    """The ground, or what is to be reached."""
    if name == "MountainCarContinuous-v0":
        x = np.linspace(-1.2, 0.6, 200)
        axis.plot(x, hill(x), color="0.6", linewidth=1)
        axis.plot(GOAL, hill(GOAL), "k>")
    elif name == "Acrobot-v1":
        axis.axhline(1.0, color="0.6", linewidth=1, linestyle=":")
    else:
        axis.axhline(0, color="0.6", linewidth=1)


def before_and_after(axes: Sequence[Axes], task: Task, row: pd.Series) -> None:
    """The same episode by the policies of a row, on an axis each."""
    init, episode = make(task)
    _, unravel = ravel_pytree(init(jax.random.key(0)))
    play = jax.jit(episode)
    titles = ("before", "after")
    for axis, title, colour in zip(axes, titles, COLOURS[1::-1], strict=True):
        params = unravel(np.array(row[title].split(), np.float32))
        gained, states = play(params, jax.random.key(EPISODE))
        steps, states = snapshots(np.asarray(states), SNAPSHOTS)
        _scene(axis, task.name)
        for i, lines in enumerate(states):
            x, z = lines.T  # [2 ends, lines] each
            shown = {"alpha": (i + 2) / (len(states) + 1), "linewidth": 2.5}
            axis.plot(x + i * APART.get(task.name, 0), z, "o-", c=colour, ms=3, **shown)
        axis.set_title(f"{title}: {steps[-1]} steps, return {float(gained):.0f}")
        axis.set_aspect("equal", adjustable="datalim")
        axis.set_axis_off()
