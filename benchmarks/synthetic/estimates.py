"""Error of one estimate: every direction sampler against its closed form.

The objective is random and the estimate is made once; errors are squared distances to
the exact gradient, over |gradient|^2, on all entries and, as in arXiv 2510.19975, on
those of at least tau. Everything is float64 with mu = 1e-8, as in the paper.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from benchmarks.functions import product
from benchmarks.study import Row
from zojax import perturbations

SMOOTHING = 1e-8
TRIALS, CHUNK = 1000, 100  # objectives drawn, and how many at a time
# Closed forms are limits for mu -> 0; this much is left to mu and to rounding.
TOLERANCE = 1e-6


# -- the objectives --------------------------------------------------------------------


class Problem(NamedTuple):
    """A random objective: a trial draws x and the data that f depends on."""

    draw: Callable[[jax.Array], tuple[jax.Array, Any]]  # key -> (x f[d], data)
    f: Callable[[jax.Array, Any], jax.Array]
    tau: float  # smallest |gradient entry| that is large


def _draw_product(key: jax.Array) -> tuple[jax.Array, None]:
    return jax.random.normal(key, (16,), float).at[0].set(0), None


def _draw_quadratic(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_key, a_key, place_key = jax.random.split(key, 3)
    x = 10 * jax.random.normal(x_key, (8,), float)
    zero = jax.random.permutation(place_key, jnp.arange(8) < 4)
    return jnp.where(zero, 0, x), jax.random.uniform(a_key, (8,), float, -1, 1)


PROBLEMS = {
    "product": Problem(_draw_product, lambda x, data: product(x), 1e-4),
    "quadratic": Problem(_draw_quadratic, lambda x, a: jnp.sum(a * x**2), 1e-2),
}


# -- the methods -----------------------------------------------------------------------

Errors = Callable[[np.ndarray, int], np.ndarray]
"""(squared gradients f[trials, d], K) -> expected squared errors f[trials, d]."""


class Method(NamedTuple):
    """How to estimate, and the closed form of the error where there is one.

    Either ``rows``, for independent directions: the first n rows are then an estimate
    of n directions, and one program serves all sizes. Or ``build``, which is called
    for each size.
    """

    # The exact gradient (which only a study can know) -> sampler.
    rows: Callable[[jax.Array], Any] | None = None
    # (K, key) -> estimator.
    build: Callable[[int, jax.Array], optax.GradientTransformationExtraArgs] | None = (
        None
    )
    theory: Errors | None = None
    theory_of_sum: bool = False  # the closed form is that of all entries together
    leave_one_out: bool = False  # weights of the rows, in place of f(theta)
    extra_queries: int = 1  # beside one for each direction
    accepts: Callable[[int], bool] = lambda num_directions: num_directions >= 1


def _two_stage(combine: str) -> Method:
    """Algorithm 2 of arXiv 2510.19975, half of the directions in each stage."""
    build = lambda k, key: zojax.dap(SMOOTHING, k, key=key, combine=combine)
    return Method(build=build, accepts=lambda k: k >= 2)


def _plain(sampler, theory: Errors, **options) -> Method:
    return Method(lambda gradient: sampler, theory=theory, **options)


def _aligned(base, fixed_length: bool = False) -> Method:
    def rows(gradient):
        return perturbations.aligned(gradient, base, fixed_length=fixed_length)

    return Method(rows, theory=_projection_errors)


def _design(sampler, difference: str, theory: Errors, **options) -> Method:
    def build(num_directions, key):
        return zojax.two_point(
            SMOOTHING, num_directions, key=key, sampler=sampler, difference=difference
        )

    return Method(build=build, theory=theory, **options)


def _sum(squares):
    return squares.sum(axis=-1, keepdims=True)


def _gaussian_errors(squares, k):
    return (_sum(squares) + squares) / k


def _sphere_errors(squares, k):
    d = squares.shape[-1]
    return (d / (d + 2) * (_sum(squares) + 2 * squares) - squares) / k


def _projection_errors(squares, k):
    """Rademacher (v_i^2 = 1), and exact alignment ((v . g)^2 = |g|^2)."""
    return (_sum(squares) - squares) / k


def _coordinate_errors(squares, k):
    return (squares.shape[-1] - 1) * squares / k


def _leave_one_out_errors(squares, k):
    """That of Rademacher, and that of v_k (v_j . g) over the K (K - 1) pairs."""
    pairs = (_sum(squares) + squares) / (k * (k - 1))
    return _projection_errors(squares, k) + pairs


def _orthogonal_errors(squares, k):
    """Whole blocks of d rows are exact; the sum of r rows more is (d / r - 1) |g|^2."""
    d = squares.shape[-1]
    return squares * (k % d) * (d - k % d) / k**2


def _simplex_errors(squares, n):
    """Entries that share a code, i mod (n - 1), cannot be told apart."""
    code = np.arange(squares.shape[-1]) % (n - 1)
    return squares @ (code[:, None] == code) - squares


_gaussian, _sphere = perturbations.gaussian(), perturbations.sphere()
_signs, _coordinate = perturbations.rademacher(), perturbations.coordinate()
METHODS = {
    "gaussian": _plain(_gaussian, _gaussian_errors),
    "sphere": _plain(_sphere, _sphere_errors),
    "Rademacher": _plain(_signs, _projection_errors),
    "coordinate": _plain(_coordinate, _coordinate_errors),
    "Rademacher, leave-one-out": _plain(
        _signs,
        _leave_one_out_errors,
        leave_one_out=True,
        extra_queries=0,
        accepts=lambda k: k >= 2,
    ),
    "exact DAP, gaussian": _aligned(_gaussian),
    "exact DAP, sphere": _aligned(_sphere),
    "exact DAP, Rademacher": _aligned(_signs),
    "exact DAP, coordinate": _aligned(_coordinate),
    "exact DAP, fixed length": _aligned(_gaussian, fixed_length=True),
    "two-stage DAP, refined": _two_stage("refined"),
    "two-stage DAP, averaged": _two_stage("average"),
    "orthogonal": _design(
        perturbations.orthogonal(), "forward", _orthogonal_errors, theory_of_sum=True
    ),
    "simplex": _design(
        perturbations.simplex(),
        "mean",
        _simplex_errors,
        extra_queries=0,
        accepts=lambda n: n >= 2 and n & (n - 1) == 0,  # powers of two
    ),
}


# -- trials ----------------------------------------------------------------------------


class Trials(NamedTuple):
    """Random objectives and their gradients; leading axis trials, float64."""

    x: jax.Array
    data: Any
    gradient: jax.Array


# Compiling takes longer than running here.
_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def draw_trials(problem: Problem, key: jax.Array, num_trials: int) -> Trials:
    """Draws objectives and differentiates them."""

    def draw(key):
        x, data = problem.draw(key)
        return Trials(x, data, jax.grad(problem.f)(x, data))

    with jax.enable_x64(True):
        return _jit(jax.vmap(draw))(jax.random.split(key, num_trials))


def estimates(
    problem: Problem,
    method: Method,
    sizes: Sequence[int],
    trials: Trials,
    key: jax.Array,
) -> dict[int, np.ndarray]:
    """Estimates f[trials, d] of each trial's gradient, by number of directions."""
    programs = [tuple(sizes)] if method.rows else [(size,) for size in sizes]
    found = {}
    with jax.enable_x64(True):
        keys = jax.random.split(key, len(trials.x))
        for program in programs:
            run = _program(problem.f, method, program)
            by_size = np.moveaxis(np.asarray(run(keys, trials)), 1, 0)
            found |= zip(program, by_size, strict=True)
    return found


@functools.cache
def _program(f: Callable, method: Method, sizes: tuple[int, ...]):
    """Returns (keys, trials) -> estimates f[trials, sizes, d], compiled once."""

    def built(key, trial):
        (size,) = sizes
        opt = method.build(size, key)
        value_fn = lambda x: f(x, trial.data)
        state = opt.init(trial.x)
        return opt.update(None, state, trial.x, value_fn=value_fn)[0][None]

    def of_rows(key, trial):
        value_fn = lambda x: f(x, trial.data)
        most = max(sizes)
        V = zojax.Directions(method.rows(trial.gradient), key, most)
        values, _ = zojax.evaluate(value_fn, trial.x, V, SMOOTHING)
        y, weights = values[:, 0], []
        for size in sizes:
            if method.leave_one_out:
                first = zojax.weights.leave_one_out(y[:size], SMOOTHING)
            else:
                base = value_fn(trial.x)
                first = zojax.weights.forward(y[:size], base, SMOOTHING)
            weights.append(jnp.pad(first, (0, most - size)))
        return zojax.combine(jnp.stack(weights), trial.x, V)

    one = of_rows if method.rows else built
    chunks = functools.partial(jax.lax.map, batch_size=CHUNK)
    return _jit(lambda keys, trials: chunks(lambda pair: one(*pair), (keys, trials)))


# -- statistics ------------------------------------------------------------------------


def errors(
    estimate: np.ndarray,
    gradient: np.ndarray,
    tau: float,
    method: Method,
    num_directions: int,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(squared errors over |gradient|^2, their closed form or nan), each f[trials].

    "error" sums over all entries, "tau_error" over those of at least tau; trials that
    have none are left out of it.
    """
    squares, large = gradient**2, np.abs(gradient) >= tau
    theory = np.full_like(squares, np.nan)
    if method.theory is not None:
        theory = method.theory(squares, num_directions)
    length = squares.sum(axis=-1)
    found, expected = (estimate - gradient) ** 2, theory
    all_entries = [a.sum(axis=-1) / length for a in (found, expected)]
    if method.theory_of_sum:
        expected = np.full_like(squares, np.nan)
    some = large.any(axis=-1)
    over_large = [
        np.where(large, a, 0).sum(axis=-1)[some] / length[some]
        for a in (found, expected)
    ]
    return {"tau_error": tuple(over_large), "error": tuple(all_entries)}


def summary(values: np.ndarray, theory: np.ndarray) -> dict[str, float]:
    """Mean, standard error, theory and z.

    z is the distance of the mean from its closed form in standard errors, beyond
    TOLERANCE; 0 where the two agree to that, nan where there is no closed form.
    """
    # Trial by trial, since the objective of each has a theory of its own.
    gap = values - theory
    z = np.nan if np.isnan(gap).any() else 0.0
    beyond = abs(gap.mean()) - TOLERANCE
    if beyond > 0:
        z = beyond / (gap.std(ddof=1) / np.sqrt(len(gap)))
    return {
        "mean": values.mean(),
        "standard_error": values.std(ddof=1) / np.sqrt(len(values)),
        "theory": theory.mean(),
        "z": z,
    }


def measure(
    problem: Problem, method: Method, sizes: Sequence[int], key: jax.Array
) -> list[Row]:
    """Rows of one estimator, one for each number of directions and measure.

    Among hundreds of closed forms a few lie beyond 3 standard errors by chance. Such a
    size is measured again with fresh noise and ten times the trials, and that is what
    is reported: chance does not survive it, an error would.
    """

    def run(key, sizes, num_trials):
        problem_key, noise_key = jax.random.split(key)
        trials = draw_trials(problem, problem_key, num_trials)
        gradient = np.asarray(trials.gradient)
        return {
            (size, name): {"trials": num_trials} | summary(*pair)
            for size, estimate in estimates(
                problem, method, sizes, trials, noise_key
            ).items()
            for name, pair in errors(
                estimate, gradient, problem.tau, method, size
            ).items()
        }

    found = run(key, sizes, TRIALS)
    for size in {size for (size, _), stats in found.items() if stats["z"] > 3}:
        found |= run(jax.random.fold_in(key, size), [size], 10 * TRIALS)
    return [
        {"num_directions": size, "queries": size + method.extra_queries}
        | {"measure": name}
        | stats
        for (size, name), stats in found.items()
    ]
