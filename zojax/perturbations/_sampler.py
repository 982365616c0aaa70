"""What a sampler is."""

from __future__ import annotations

from typing import Protocol

import jax

from zojax._numerics import PyTree


class Sampler(Protocol):
    """How a perturbation direction is drawn: one row of a K x d matrix V.

    A sampler reads shapes, dtypes and places of ``params``, never values, and returns a
    pytree like ``params`` with ``None`` at frozen leaves. Rows satisfy E[v v^T] = I,
    and row ``k`` is a pure function of ``(key, k)``, so that it can be drawn again at
    any time.
    """

    def __call__(
        self, key: jax.Array, k: jax.Array | int, num_directions: int, params: PyTree
    ) -> PyTree: ...
