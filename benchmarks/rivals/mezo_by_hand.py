"""MeZO as its users write it by hand in JAX (arXiv 2305.17333, Algorithm 1).

The parameters themselves are moved by +mu, -2 mu and +mu along noise that is named by
its key, a key a leaf; the step walks along the same noise once more.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

PyTree = Any
F = Callable[[PyTree], jax.Array]


def _perturb(params: PyTree, key: jax.Array, scale: jax.Array | float) -> PyTree:
    """Params + scale z, z normal noise with a key of its own for each leaf."""
    noise = optax.tree.random_like(key, params)
    return jax.tree.map(lambda p, z: p + scale * z, params, noise)


def step(f: F, params: PyTree, key: jax.Array, smoothing: float, rate: float) -> PyTree:
    """One step: the params after it."""
    params = _perturb(params, key, smoothing)
    plus = f(params)
    params = _perturb(params, key, -2 * smoothing)
    minus = f(params)
    params = _perturb(params, key, smoothing)
    slope = (plus - minus) / (2 * smoothing)
    return _perturb(params, key, -rate * slope)


def training(
    f: F, steps: int, smoothing: float, rate: float, seed: int = 0
) -> Callable[[PyTree], PyTree]:
    """Whole steps in a scan: params -> params after the steps."""

    def run(params):
        body = lambda p, k: (step(f, p, k, smoothing, rate), None)
        keys = jax.random.split(jax.random.key(seed), steps)
        return jax.lax.scan(body, params, keys)[0]

    return run
