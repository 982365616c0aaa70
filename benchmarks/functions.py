"""Objectives on R^d: the test functions of both papers, minimum 0 unless said."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = [
    "FUNCTIONS",
    "ackley",
    "levy",
    "product",
    "quadratic",
    "rastrigin",
    "rosenbrock",
]


def quadratic(x: jax.Array) -> jax.Array:
    """|x|^2 / 2."""
    return 0.5 * jnp.sum(x**2)


def rosenbrock(x: jax.Array) -> jax.Array:
    """sum 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2, a curved valley towards all ones."""
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def levy(x: jax.Array) -> jax.Array:
    """Levy's function, w = 1 + (x - 1) / 4: many local minima, least at all ones."""
    w = 1 + (x - 1) / 4
    first = jnp.sin(jnp.pi * w[0]) ** 2
    body = (w[:-1] - 1) ** 2 * (1 + 10 * jnp.sin(jnp.pi * w[:-1] + 1) ** 2)
    last = (w[-1] - 1) ** 2 * (1 + jnp.sin(2 * jnp.pi * w[-1]) ** 2)
    return first + jnp.sum(body) + last


def ackley(x: jax.Array) -> jax.Array:
    """Ackley's function: a rippled plateau around a narrow funnel."""
    funnel = 20 * jnp.exp(-0.2 * jnp.sqrt(jnp.mean(x**2)))
    ripples = jnp.exp(jnp.mean(jnp.cos(2 * jnp.pi * x)))
    return 20 + jnp.e - funnel - ripples


def rastrigin(x: jax.Array) -> jax.Array:
    """sum x_i^2 + 10 (1 - cos 2 pi x_i): a bowl full of deep local minima."""
    return jnp.sum(x**2 + 10 * (1 - jnp.cos(2 * jnp.pi * x)))


def product(x: jax.Array) -> jax.Array:
    """prod x_i, which has no minimum; its gradient at x_0 = 0 has one entry."""
    return jnp.prod(x)


FUNCTIONS = {f.__name__: f for f in (quadratic, rosenbrock, levy, ackley, rastrigin)}
