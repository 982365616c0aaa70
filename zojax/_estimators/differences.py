"""Differences of the objective along a direction, and what each asks."""

from __future__ import annotations

import jax

from zojax import weights
from zojax._checks import check_int
from zojax._evaluation import BOTH_SIDES, ONE_SIDE
from zojax.perturbations._sampler import Sampler

AT_PARAMS = ("forward", "central")
DIFFERENCES = (*AT_PARAMS, "mean", "leave_one_out")


def sides_of(difference: str) -> tuple[float, ...]:
    """The sides of a direction that are asked."""
    return BOTH_SIDES if difference == "central" else ONE_SIDE


def weigh(
    difference: str,
    values: jax.Array,
    at_params: jax.Array | None,
    smoothing: jax.Array,
) -> jax.Array:
    """Values f[K, P], and f(theta) for forward differences -> weights f[K]."""
    if difference == "forward":
        return weights.forward(values[:, 0], at_params, smoothing)
    if difference == "central":
        return weights.central(values[:, 0], values[:, 1], smoothing)
    if difference == "mean":
        return weights.mean_baseline(values[:, 0], smoothing)
    return weights.leave_one_out(values[:, 0], smoothing)


def check_baseline(name: str, baseline: str, sampler: Sampler, number: int) -> None:
    """Raises unless a baseline of the step's own values suits its directions."""
    if baseline not in ("mean", "leave_one_out", "optimal"):
        return
    check_int("num_directions", number, 2, f" with {name}={baseline!r}")
    if baseline == "leave_one_out":
        check_zero_sum(f'{name} must be "mean"', sampler)


def check_zero_sum(advice: str, sampler: Sampler) -> None:
    """Raises where the correction of a mean that includes its samples would be wrong.

    Where the rows of a design sum to zero the mean baseline is unbiased as it stands.
    """
    if sampler.design == "zero_sum":
        raise ValueError(
            f"{advice} with a design whose directions sum to zero, as simplex(): the"
            f" mean is unbiased there as it stands, got {sampler!r}"
        )
