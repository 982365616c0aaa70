"""The parts that estimators are made of: V, asking along it, and summing it.

Let V be the K x d matrix of directions, named by a key (:class:`Directions`).
:func:`evaluate` asks for f(theta + mu s_p v_k), ``zojax.weights`` turns the values
into weights w, and :func:`combine` returns V^T w; :func:`estimate` does all three. V is
never state and never a message: only keys and scalars go from one to the next.
"""

from zojax._directions import (
    Directions,
    add_directions,
    as_gradient,
    combine,
    map_directions,
)
from zojax._evaluation import Estimate, estimate, evaluate, points

__all__ = [
    "Directions",
    "Estimate",
    "add_directions",
    "as_gradient",
    "combine",
    "estimate",
    "evaluate",
    "map_directions",
    "points",
]
