"""zojax: zeroth-order gradient estimators as optax gradient transformations."""

from zojax import external, perturbations, queries, shaping, weights
from zojax._check_smoothing import check_smoothing
from zojax._estimators.aligned_projection import (
    AlignedProjectionState,
    aligned_projection,
)
from zojax._estimators.dap import DapState, dap
from zojax._estimators.log import QueryLog
from zojax._estimators.reinforce import ReinforceState, gaussian_log_density, reinforce
from zojax._estimators.rounds import Queries
from zojax._estimators.step import Estimator
from zojax._estimators.two_point import (
    TwoPointState,
    mezo,
    spsa,
    two_point,
    value_and_grad,
)
from zojax._estimators.zoar import ZoarState, zoar
from zojax._radazo import ScaleByRadazoState, radazo, scale_by_radazo
from zojax._spall import BlockStepsState, SpallGains, block_steps, spall_gains
from zojax.perturbations import PerturbedArray, Sampler, materialize
from zojax.queries import (
    Directions,
    Estimate,
    as_gradient,
    combine,
    estimate,
    evaluate,
)

__version__ = "0.1.0"

__all__ = [
    "AlignedProjectionState",
    "BlockStepsState",
    "DapState",
    "Directions",
    "Estimate",
    "Estimator",
    "PerturbedArray",
    "Queries",
    "QueryLog",
    "ReinforceState",
    "Sampler",
    "ScaleByRadazoState",
    "SpallGains",
    "TwoPointState",
    "ZoarState",
    "aligned_projection",
    "as_gradient",
    "block_steps",
    "check_smoothing",
    "combine",
    "dap",
    "estimate",
    "evaluate",
    "external",
    "gaussian_log_density",
    "materialize",
    "mezo",
    "perturbations",
    "queries",
    "radazo",
    "reinforce",
    "scale_by_radazo",
    "shaping",
    "spall_gains",
    "spsa",
    "two_point",
    "value_and_grad",
    "weights",
    "zoar",
]
