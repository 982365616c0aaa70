"""Differences of the objective along a direction: what they ask and how they weigh."""

from collections.abc import Callable

import jax

from zojax import weights
from zojax._checks import check_int
from zojax._estimators.rounds import Step
from zojax._evaluation import BOTH_SIDES, ONE_SIDE
from zojax.perturbations import Sampler

AT_PARAMS = ("forward", "central")
DIFFERENCES = (*AT_PARAMS, "mean", "leave_one_out")


def sides_of(difference: str) -> tuple[float, ...]:
    """The sides of a direction that are asked."""
    return BOTH_SIDES if difference == "central" else ONE_SIDE


def weigher(
    difference: str, step: Step, known: jax.Array | None = None
) -> Callable[[jax.Array, jax.Array | None], jax.Array]:
    """(values f[K, P], f(theta), or that of an earlier round) -> weights f[K]."""
    mu = step.smoothing

    def weigh(values, at_params):
        if difference == "forward":
            at_params = at_params if known is None else known
            found = weights.forward(values[:, 0], at_params, mu)
        elif difference == "central":
            found = weights.central(values[:, 0], values[:, 1], mu)
        elif difference == "mean":
            found = weights.mean_baseline(values[:, 0], mu)
        else:
            found = weights.leave_one_out(values[:, 0], mu)
        return step.clipped(found, values)

    return weigh


def check_baseline(name: str, baseline: str, sampler: Sampler, number: int) -> None:
    """Raises unless a baseline of the step's own values suits its directions."""
    if baseline in ("mean", "leave_one_out", "optimal"):
        check_int("num_directions", number, 2, f" with {name}={baseline!r}")
    if baseline == "leave_one_out":
        check_zero_sum(f'{name} must be "mean"', sampler)


def check_zero_sum(advice: str, sampler: Sampler) -> None:
    """Raises where a mean that includes its own samples needs no correction."""
    if sampler.design == "zero_sum":
        raise ValueError(
            f"{advice} with a design whose directions sum to zero, as simplex(): the"
            f" mean is unbiased there as it stands, got {sampler!r}"
        )
