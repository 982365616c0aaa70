"""How a perturbation direction is drawn.

Each factory returns a :class:`zojax.Sampler`, a bundle of pure functions of (key, k)
that draw row k of the matrix V named by key, and use it. All rows satisfy

    E[v v^T] = I    (so E|v|^2 = d, the number of trainable entries),

so that no factor of d, K or smoothing appears anywhere else. A direction is global over
the parameter tree: one norm, one index range. Noise is drawn in float32 from a key that
depends on the leaf's path alone, then cast: two leaves of one shape differ, and adding
or freezing a leaf leaves the draws of the others as they are.
"""

from zojax.perturbations._composed import aligned, restrict
from zojax.perturbations._designs import orthogonal, simplex
from zojax.perturbations._independent import coordinate, gaussian, rademacher, sphere
from zojax.perturbations._lazy import PerturbedArray, lazy, materialize
from zojax.perturbations._low_rank.array import LowRankArray
from zojax.perturbations._low_rank.sampler import low_rank
from zojax.perturbations._sampler import Sampler, from_rows
from zojax.perturbations._sparse import sparse

__all__ = [
    "LowRankArray",
    "PerturbedArray",
    "Sampler",
    "aligned",
    "coordinate",
    "from_rows",
    "gaussian",
    "lazy",
    "low_rank",
    "materialize",
    "orthogonal",
    "rademacher",
    "restrict",
    "simplex",
    "sparse",
    "sphere",
]
