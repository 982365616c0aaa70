"""The estimators under comparison, and the loop that moves the vertices."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax

import zojax
from benchmarks.mesh.poisson import exact_solution
from benchmarks.mesh.problem import (
    Params,
    Problem,
    make_problem,
    rms_error,
    shorten,
    start,
)
from benchmarks.study import Row, Tick
from zojax import perturbations

CELLS = (10, 20)  # coarse, fine
SMOOTHING = 1e-5  # the amplitude, in units of the square's side
CHUNK = 64  # solves at a time: their matrices stay in the cache
NUM_POINTS = 20  # of a curve, beside the start

EXACT = "autodiff"  # through the solver, in the place of an estimator
_forward = functools.partial(zojax.two_point, difference="forward")
_two_stage = functools.partial(
    zojax.dap, sampler=perturbations.sphere(), base=perturbations.gaussian()
)
METHODS = {
    "gaussian": functools.partial(_forward, sampler=perturbations.gaussian()),
    "sphere": functools.partial(_forward, sampler=perturbations.sphere()),
    "Rademacher": functools.partial(_forward, sampler=perturbations.rademacher()),
    "coordinate": functools.partial(_forward, sampler=perturbations.coordinate()),
    "DAP, refined": functools.partial(_two_stage, combine="refined"),
    "DAP, averaged": functools.partial(_two_stage, combine="average"),
    "orthogonal": functools.partial(_forward, sampler=perturbations.orthogonal()),
    "simplex": functools.partial(
        zojax.two_point, sampler=perturbations.simplex(), difference="mean"
    ),
}


def cost(name: str, num_directions: int) -> int:
    """PDE solves of a step; a gradient counts as a step of forward differences."""
    return num_directions + (name != "simplex")


def build(
    name: str, num_directions: int, key: jax.Array
) -> optax.GradientTransformation:
    """The estimator; autodiff's gradients are incoming ones."""
    if name == EXACT:
        return optax.identity()
    chunk_size = CHUNK if num_directions > CHUNK else None
    return METHODS[name](SMOOTHING, num_directions, key=key, chunk_size=chunk_size)


def make_descent(
    value_fn: Callable[[Params], jax.Array],
    problem: Problem,
    name: str,
    num_directions: int,
    iterations: int,
    cosine: bool = False,
) -> Callable[..., tuple[list[int], list[float], Params]]:
    """Returns run(params, key, step_size, tick) -> (iterations, values, last params).

    The first two are a curve, from the start on. It is compiled once for all calls. A
    step to a mesh that is not sound is shortened; ``cosine`` lets steps decay to 0.
    """
    decay = optax.cosine_decay_schedule(1.0, iterations)
    seen = np.linspace(0, iterations, NUM_POINTS + 1).round().astype(int)
    objective = jax.jit(value_fn)

    def descend(key, step_size):
        schedule = lambda n: step_size * (decay(n) if cosine else 1.0)
        return optax.chain(build(name, num_directions, key), optax.sgd(schedule))

    @jax.jit
    def block(params, state, step_size, length):
        opt = descend(0, step_size)  # the key is in the state: this one is not read

        def step(_, carry):
            params, state = carry
            gradient = jax.grad(value_fn)(params) if name == EXACT else None
            updates, state = opt.update(gradient, state, params, value_fn=value_fn)
            updates = shorten(params, updates, problem)
            return optax.apply_updates(params, updates), state

        params, state = jax.lax.fori_loop(0, length, step, (params, state))
        return params, state, value_fn(params)

    def run(params, key, step_size, tick=lambda share: None):
        state = descend(key, step_size).init(params)
        values = [float(objective(params))]
        for length, done in zip(np.diff(seen), seen[1:], strict=True):
            params, state, value = block(params, state, step_size, length)
            values.append(float(value))
            tick(done / iterations)
        return seen.tolist(), values, params

    return run


def measure(
    name: str,
    num_directions: int,
    iterations: int,
    step_sizes: Sequence[float],
    cosine: bool,
    seeds: Sequence[int],
    tick: Tick = lambda share: None,
) -> list[Row]:
    """Gradient descent with each step size from each seed; a row a point of a curve.

    The last row of a curve has the interior vertices, as text; it and the first one
    have the error against the exact solution of the equation. Autodiff has no noise and
    needs but the first seed.
    """
    problem = make_problem(*CELLS)
    value_fn = functools.partial(rms_error, problem=problem)
    exact = problem._replace(reference=exact_solution(problem.at))
    seeds = seeds[:1] if name == EXACT else seeds
    pairs = [(step_size, seed) for step_size in step_sizes for seed in seeds]
    rows: list[Row] = []
    with jax.enable_x64(True):
        run = make_descent(value_fn, problem, name, num_directions, iterations, cosine)
        true_error = jax.jit(functools.partial(rms_error, problem=exact))
        for done, (step_size, seed) in enumerate(pairs):
            part = lambda share, done=done: tick((done + share) / len(pairs))
            first, key = start(problem), jax.random.key(seed)
            seen, values, last = run(first, key, step_size, part)
            names = {"method": name, "num_directions": num_directions}
            names |= {"step_size": step_size, "seed": seed}
            curve = [
                names | {"solves": n * cost(name, num_directions), "rms": value}
                for n, value in zip(seen, values, strict=True)
            ]
            curve[0]["true_rms"] = float(true_error(first))
            curve[-1]["true_rms"] = float(true_error(last))
            flat = np.asarray(last["interior"]).ravel()
            curve[-1]["vertices"] = " ".join(f"{x:.6f}" for x in flat)
            rows += curve
    return rows
