"""zojax: zeroth-order gradient estimators as optax gradient transformations."""

from zojax import cores, external, perturbations, queries, shaping, weights
from zojax._calibration import calibrate_spall_gains, noise_deviation
from zojax._check_smoothing import SmoothingCheck, check_smoothing
from zojax._diagnose import Diagnosis, diagnose
from zojax._estimators.aligned_projection import (
    AlignedProjectionState,
    aligned_projection,
)
from zojax._estimators.dap import DapState, dap
from zojax._estimators.log import QueryLog
from zojax._estimators.reinforce import ReinforceState, gaussian_log_density, reinforce
from zojax._estimators.rounds import Queries
from zojax._estimators.second_order_spsa import (
    SecondOrderSpsaState,
    second_order_spsa,
)
from zojax._estimators.step import Estimator
from zojax._estimators.two_point import (
    TwoPointState,
    mezo,
    spsa,
    two_point,
    value_and_grad,
)
from zojax._estimators.zoar import ZoarState, zoar
from zojax._inject import inject_hyperparams
from zojax._iterates import (
    AverageIteratesState,
    DecayTowardsStartState,
    average_iterates,
    decay_towards_start,
)
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
    "AverageIteratesState",
    "BlockStepsState",
    "DapState",
    "DecayTowardsStartState",
    "Diagnosis",
    "Directions",
    "Estimate",
    "Estimator",
    "PerturbedArray",
    "Queries",
    "QueryLog",
    "ReinforceState",
    "Sampler",
    "ScaleByRadazoState",
    "SecondOrderSpsaState",
    "SmoothingCheck",
    "SpallGains",
    "TwoPointState",
    "ZoarState",
    "aligned_projection",
    "as_gradient",
    "average_iterates",
    "block_steps",
    "calibrate_spall_gains",
    "check_smoothing",
    "combine",
    "cores",
    "dap",
    "decay_towards_start",
    "diagnose",
    "estimate",
    "evaluate",
    "external",
    "gaussian_log_density",
    "inject_hyperparams",
    "materialize",
    "mezo",
    "noise_deviation",
    "perturbations",
    "queries",
    "radazo",
    "reinforce",
    "scale_by_radazo",
    "second_order_spsa",
    "shaping",
    "spall_gains",
    "spsa",
    "two_point",
    "value_and_grad",
    "weights",
    "zoar",
]
