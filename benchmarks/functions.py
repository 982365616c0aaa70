"""Objectives on R^d: the test functions of both papers, minimum 0 unless said."""

import jax
import jax.numpy as jnp


def quadratic(x: jax.Array) -> jax.Array:
    """|x|^2 / 2."""
    return 0.5 * jnp.sum(x**2)


def rosenbrock(x: jax.Array) -> jax.Array:
    """sum 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2, a curved valley towards all ones."""
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def cos_turns(x: jax.Array) -> jax.Array:
    """cos(2 pi x), to 1e-6.

    XLA's cosine on CPU is right for any argument and several times slower.
    """
    y = jnp.pi * (x - jnp.round(x))  # within +-pi / 2, for sin y by its series
    t = y**2
    tail = 1 - t / 42 * (1 - t / 72 * (1 - t / 110))
    sine = y * (1 - t / 6 * (1 - t / 20 * tail))
    return 1 - 2 * sine**2


def levy(x: jax.Array) -> jax.Array:
    """Levy's function: many local minima, least at all ones.

    With w = 1 + (x - 1) / 4: sin^2(pi w_0) + sum (w_i - 1)^2 (1 + 10 sin^2(pi w_i + 1))
    + (w_d - 1)^2 (1 + sin^2(2 pi w_d)).
    """
    squared_sine = lambda turns: (1 - cos_turns(turns)) / 2  # sin^2(pi turns)
    w = 1 + (x - 1) / 4
    body = (w[:-1] - 1) ** 2 * (1 + 10 * squared_sine(w[:-1] + 1 / jnp.pi))
    last = (w[-1] - 1) ** 2 * (1 + squared_sine(2 * w[-1]))
    return squared_sine(w[0]) + jnp.sum(body) + last


def ackley(x: jax.Array) -> jax.Array:
    """Ackley's function: a rippled plateau around a narrow funnel."""
    funnel = 20 * jnp.exp(-0.2 * jnp.sqrt(jnp.mean(x**2)))
    return 20 + jnp.e - funnel - jnp.exp(jnp.mean(cos_turns(x)))


def rastrigin(x: jax.Array) -> jax.Array:
    """sum x_i^2 + 10 (1 - cos 2 pi x_i): a bowl full of deep local minima."""
    return jnp.sum(x**2 + 10 * (1 - cos_turns(x)))


def product(x: jax.Array) -> jax.Array:
    """prod x_i, which has no minimum; its gradient at x_0 = 0 has one entry."""
    return jnp.prod(x)


FUNCTIONS = {f.__name__: f for f in (quadratic, rosenbrock, levy, ackley, rastrigin)}
