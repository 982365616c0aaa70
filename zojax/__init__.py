"""zojax: zeroth-order gradient estimators as optax gradient transformations."""

from zojax import perturbations, queries, weights
from zojax._base import QueryLog, Sampler
from zojax.aligned_projection import AlignedProjectionState, aligned_projection
from zojax.dap import DapState, dap
from zojax.perturbations import PerturbedArray, materialize
from zojax.queries import (
    Estimate,
    as_gradient,
    combine,
    estimate,
    evaluate,
    evaluate_at,
)
from zojax.radazo import ScaleByRadazoState, radazo, scale_by_radazo
from zojax.reinforce import ReinforceState, gaussian_log_density, reinforce
from zojax.smoothing import check_smoothing
from zojax.two_point import TwoPointState, mezo, spsa, two_point
from zojax.zoar import ZoarState, zoar

__version__ = "0.1.0"

__all__ = [
    "AlignedProjectionState",
    "DapState",
    "Estimate",
    "PerturbedArray",
    "QueryLog",
    "ReinforceState",
    "Sampler",
    "ScaleByRadazoState",
    "TwoPointState",
    "ZoarState",
    "aligned_projection",
    "as_gradient",
    "check_smoothing",
    "combine",
    "dap",
    "estimate",
    "evaluate",
    "evaluate_at",
    "gaussian_log_density",
    "materialize",
    "mezo",
    "perturbations",
    "queries",
    "radazo",
    "reinforce",
    "scale_by_radazo",
    "spsa",
    "two_point",
    "weights",
    "zoar",
]
