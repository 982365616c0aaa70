"""The estimators under comparison, and the loop that moves the vertices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from benchmarks.mesh.poisson import exact_solution
from benchmarks.mesh.problem import (
    MASK,
    Params,
    Problem,
    rms_error,
    shorten,
    start,
)
from benchmarks.study import Row, Tick
from zojax import perturbations
from zojax.perturbations import restrict

SMOOTHING = 1e-5  # the amplitude, in units of the square's side
CHUNK = 64  # solves at a time: their matrices stay in the cache

ValueFn = Callable[[Params], jax.Array]
"""Params -> f[]; inf where the mesh cannot be solved."""


class Method(NamedTuple):
    """An estimator of the gradient."""

    label: str
    build: Callable[..., optax.GradientTransformationExtraArgs]  # (K, key, chunk_size)
    extra: int = 1  # solves of a step beside one for each direction


def _forward(sampler, difference="forward"):
    def build(num_directions, key, chunk_size):
        return zojax.two_point(
            SMOOTHING,
            num_directions,
            key=key,
            sampler=restrict(sampler, MASK),
            difference=difference,
            chunk_size=chunk_size,
        )

    return build


def _two_stage(combine):
    def build(num_directions, key, chunk_size):
        return zojax.dap(
            SMOOTHING,
            num_directions,
            key=key,
            sampler=restrict(perturbations.sphere(), MASK),
            base=restrict(perturbations.gaussian(), MASK),
            combine=combine,
            chunk_size=chunk_size,
        )

    return build


METHODS = {
    "gaussian": Method("gaussian", _forward(perturbations.gaussian())),
    "sphere": Method("sphere", _forward(perturbations.sphere())),
    "rademacher": Method("Rademacher", _forward(perturbations.rademacher())),
    "coordinate": Method("coordinate", _forward(perturbations.coordinate())),
    "dap": Method("DAP, refined", _two_stage("refined")),
    "dap-average": Method("DAP, averaged", _two_stage("average")),
    "orthogonal": Method("orthogonal", _forward(perturbations.orthogonal())),
    "simplex": Method("simplex", _forward(perturbations.simplex(), "mean"), 0),
}
EXACT = "exact"  # in the place of a method's name: autodiff through the solver


def label(name: str) -> str:
    """What a table calls a method."""
    return "autodiff" if name == EXACT else METHODS[name].label


def cost(name: str, num_directions: int) -> int:
    """PDE solves of a step; a gradient counts as a step of forward differences."""
    return num_directions + (1 if name == EXACT else METHODS[name].extra)


class Descent(NamedTuple):
    """A run of an optimizer."""

    iterations: np.ndarray  # i[P + 1], 0 first
    values: np.ndarray  # f64[P + 1], the objective at the iterates
    params: Params  # the last one
    rejected: int  # probes that had no solution


def exact_gradient() -> optax.GradientTransformationExtraArgs:
    """Autodiff through the solver in the place of an estimator."""

    def update(updates, state, params, *, value_fn, **extra_args):
        del updates, extra_args
        gradient = jax.grad(value_fn)(params)
        frozen = jnp.zeros_like(params["boundary"])
        return gradient | {"boundary": frozen}, state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def make_descent(
    value_fn: ValueFn,
    problem: Problem,
    build: Callable[[Any], optax.GradientTransformationExtraArgs],
    optimizer: Callable[[jax.Array], optax.GradientTransformation],
    iterations: int,
    num_points: int,
) -> Callable[[Params, jax.Array, float, Tick], Descent]:
    """Returns run(params, key, step_size, tick), compiled once for all its calls.

    Args:
      value_fn: the objective.
      problem: says which meshes are sound; a step to one that is not is shortened.
      build: estimator of a key.
      optimizer: of a step size.
      iterations: of the optimizer.
      num_points: of the curve, beside the start.
    """
    seen = np.linspace(0, iterations, num_points + 1).round().astype(int)

    @jax.jit
    def block(params, state, step_size, length):
        # The key is in the state: the one given here is not read.
        opt = optax.chain(build(0), optimizer(step_size))

        def step(_, carry):
            params, state = carry
            updates, state = opt.update(None, state, params, value_fn=value_fn)
            updates = shorten(params, updates, problem)
            return optax.apply_updates(params, updates), state

        params, state = jax.lax.fori_loop(0, length, step, (params, state))
        return params, state, value_fn(params)

    objective = jax.jit(value_fn)

    def run(params, key, step_size, tick=lambda share: None):
        state = optax.chain(build(key), optimizer(step_size)).init(params)
        values = [float(objective(params))]
        for length, done in zip(np.diff(seen), seen[1:], strict=True):
            params, state, value = block(params, state, step_size, length)
            values.append(float(value))
            tick(done / iterations)
        rejected = int(optax.tree.get(state, "num_nonfinite", 0))
        return Descent(seen, np.array(values), params, rejected)

    return run


def measure(
    problem: Problem,
    name: str,
    num_directions: int,
    iterations: int,
    *,
    num_points: int,
    step_sizes: Sequence[float],
    seeds: Sequence[int],
    cosine: bool,
    tick: Tick = lambda share: None,
) -> list[Row]:
    """Gradient descent with each step size from each seed; a row a point of a curve.

    Args:
      problem: what to solve.
      name: of METHODS, or EXACT, which has no noise and needs but the first seed.
      num_directions: K.
      iterations: of gradient descent.
      num_points: of a curve, beside the start.
      step_sizes: of gradient descent; with ``cosine`` they decay to 0.
      seeds: of the noise.
      cosine: whether the step decays by half a cosine wave.
      tick: is called with the share that is done, and may raise to stop.

    Returns:
      Rows; the last one of a curve has the final interior vertices of the first seed,
      as text, and the error against the exact solution of the equation.
    """

    def build(key):
        if name == EXACT:
            return exact_gradient()
        chunk_size = CHUNK if num_directions > CHUNK else None
        return METHODS[name].build(num_directions, key, chunk_size)

    def optimizer(step_size):
        decay = optax.cosine_decay_schedule(1.0, iterations)
        return optax.sgd(lambda n: step_size * (decay(n) if cosine else 1.0))

    seeds = seeds[:1] if name == EXACT else seeds
    runs, rows = len(step_sizes) * len(seeds), []
    with jax.enable_x64(True):
        exact = problem._replace(reference=exact_solution(problem.at))
        run = make_descent(
            lambda params: rms_error(params, problem),
            problem,
            build,
            optimizer,
            iterations,
            num_points,
        )
        true_error = jax.jit(lambda params: rms_error(params, exact))
        for done, (step_size, seed) in enumerate(
            (step_size, seed) for step_size in step_sizes for seed in seeds
        ):
            part = lambda share, done=done: tick((done + share) / runs)
            found = run(start(problem), jax.random.key(seed), step_size, part)
            common = {
                "method": name,
                "num_directions": num_directions,
                "step_size": step_size,
                "seed": seed,
            }
            rows += [
                common
                | {
                    "iteration": n,
                    "solves": n * cost(name, num_directions),
                    "rms": value,
                }
                for n, value in zip(
                    found.iterations.tolist(), found.values.tolist(), strict=True
                )
            ]
            rows[-1] |= {
                "rejected": found.rejected,
                "true_rms": float(true_error(found.params)),
            }
            if seed == seeds[0]:
                flat = np.asarray(found.params["interior"]).ravel()
                rows[-1]["vertices"] = " ".join(f"{x:.6f}" for x in flat)
    return rows
