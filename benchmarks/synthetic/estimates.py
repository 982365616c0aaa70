"""Error of one estimate: every direction sampler against its closed form.

The objective is random and the estimate is made once; errors are squared distances to
the exact gradient, over |gradient|^2. tau-MSE, the quantity of arXiv 2510.19975, counts
only entries of at least tau. Everything is float64 with mu = 1e-8, as in the paper.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import zojax
from benchmarks.functions import product
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
    tau: float  # smallest |gradient entry| that tau-MSE counts


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

    label: str
    # The exact gradient (which only a study can know) -> sampler.
    rows: Callable[[jax.Array], Any] | None = None
    # (K, key) -> estimator.
    build: Callable[[int, jax.Array], optax.GradientTransformationExtraArgs] | None = (
        None
    )
    leave_one_out: bool = False  # weights of the rows, in place of f(theta)
    extra_queries: int = 1  # beside one for each direction
    entrywise: Errors | None = None
    # Expected error over |gradient|^2 of all entries together: (d, K) -> number.
    total: Callable[[int, int], float] | None = None
    accepts: Callable[[int], bool] = lambda num_directions: num_directions >= 1


def isotropic(sampler) -> Callable[[jax.Array], Any]:
    """Rows that do not look at the gradient."""
    return lambda gradient: sampler


def exactly_aligned(base, fixed_length: bool = False) -> Callable[[jax.Array], Any]:
    """Rows aligned with the gradient itself."""
    return lambda gradient: perturbations.aligned(
        gradient, base, fixed_length=fixed_length
    )


def two_stage(combine: str, split: float = 0.5):
    """Algorithm 2 of arXiv 2510.19975."""
    return lambda num_directions, key: zojax.dap(
        SMOOTHING, num_directions, key=key, split=split, combine=combine
    )


def _design(sampler, difference: str):
    return lambda num_directions, key: zojax.two_point(
        SMOOTHING, num_directions, key=key, sampler=sampler, difference=difference
    )


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


def _orthogonal_total(d, k):
    """Whole blocks of d rows are exact; the error of r rows more is d / r - 1."""
    return (k % d) * (d - k % d) / k**2


def _simplex_errors(squares, n):
    """Entries that share a code, i mod (n - 1), cannot be told apart."""
    code = np.arange(squares.shape[-1]) % (n - 1)
    return squares @ (code[:, None] == code) - squares


def _power_of_two(number: int) -> bool:
    return number >= 2 and number & (number - 1) == 0


def _independent(label: str, sampler, entrywise: Errors) -> Method:
    return Method(label, isotropic(sampler), entrywise=entrywise)


def _aligned(label: str, base, fixed_length: bool = False) -> Method:
    rows = exactly_aligned(base, fixed_length)
    return Method(f"exact DAP, {label}", rows, entrywise=_projection_errors)


def _two_stage(label: str, combine: str) -> Method:
    build = two_stage(combine)
    return Method(f"two-stage DAP, {label}", build=build, accepts=lambda k: k >= 2)


_gaussian, _sphere = perturbations.gaussian(), perturbations.sphere()
_rademacher, _coordinate = perturbations.rademacher(), perturbations.coordinate()

METHODS = {
    "gaussian": _independent("gaussian", _gaussian, _gaussian_errors),
    "sphere": _independent("sphere", _sphere, _sphere_errors),
    "rademacher": _independent("Rademacher", _rademacher, _projection_errors),
    "coordinate": _independent("coordinate", _coordinate, _coordinate_errors),
    "rademacher-loo": Method(
        "Rademacher, leave-one-out",
        isotropic(_rademacher),
        leave_one_out=True,
        extra_queries=0,
        entrywise=_leave_one_out_errors,
        accepts=lambda k: k >= 2,
    ),
    "dap-gaussian": _aligned("gaussian", _gaussian),
    "dap-sphere": _aligned("sphere", _sphere),
    "dap-rademacher": _aligned("Rademacher", _rademacher),
    "dap-coordinate": _aligned("coordinate", _coordinate),
    "dap-hybrid": _aligned("fixed length", _gaussian, fixed_length=True),
    "dap-refined": _two_stage("refined", "refined"),
    "dap-average": _two_stage("averaged", "average"),
    "orthogonal": Method(
        "orthogonal",
        build=_design(perturbations.orthogonal(), "forward"),
        total=_orthogonal_total,
    ),
    "simplex": Method(
        "simplex",
        build=_design(perturbations.simplex(), "mean"),
        extra_queries=0,
        entrywise=_simplex_errors,
        accepts=_power_of_two,
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
    by_size = {}
    with jax.enable_x64(True):
        keys = jax.random.split(key, len(trials.x))
        for program in programs:
            run = _program(problem.f, method, program)
            chunks = [slice(i, i + CHUNK) for i in range(0, len(keys), CHUNK)]
            take = lambda part: jax.tree.map(lambda x: x[part], (keys, trials))
            found = np.concatenate([run(*take(part)) for part in chunks])
            by_size |= {size: found[:, i] for i, size in enumerate(program)}
    return by_size


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

    return _jit(jax.vmap(of_rows if method.rows else built))


# -- statistics ------------------------------------------------------------------------

MEASURES = ("tau_mse", "tau_error", "error", "cosine")


def errors(
    estimate: np.ndarray,
    gradient: np.ndarray,
    tau: float,
    method: Method,
    num_directions: int,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By measure: (values, their closed form or nan), each f[trials].

    tau_mse    mean squared error over entries of at least tau, as in the paper
    tau_error  sum of squared errors over those entries, over |gradient|^2
    error      sum of squared errors over all entries, over |gradient|^2
    cosine     of estimate and gradient

    Trials without an entry of at least tau are nan in the first two.
    """
    squares, errors = gradient**2, (estimate - gradient) ** 2
    length, large = squares.sum(axis=-1), np.abs(gradient) >= tau
    count = np.where(large.any(axis=-1), large.sum(axis=-1), np.nan)
    over_large = lambda a: np.where(count > 0, (a * large).sum(axis=-1), np.nan)
    unknown = np.full(len(gradient), np.nan)
    tau_theory = theory = unknown
    if method.entrywise is not None:
        expected = method.entrywise(squares, num_directions)
        tau_theory = over_large(expected) / length
        theory = expected.sum(axis=-1) / length
    if method.total is not None:
        theory = np.full_like(unknown, method.total(gradient.shape[-1], num_directions))
    norms = np.linalg.norm(estimate, axis=-1) * np.sqrt(length)
    inner = (estimate * gradient).sum(axis=-1)
    return {
        "tau_mse": (over_large(errors) / count, unknown),
        "tau_error": (over_large(errors) / length, tau_theory),
        "error": (errors.sum(axis=-1) / length, theory),
        "cosine": (inner / np.maximum(norms, np.finfo(float).tiny), unknown),
    }


def summary(values: np.ndarray, theory: np.ndarray) -> dict[str, float]:
    """Median, mean, standard error, theory and z.

    z is the distance of the mean from its closed form in standard errors, beyond
    TOLERANCE; 0 where the two agree to that, nan where there is no closed form.
    """
    kept = ~np.isnan(values)
    values, theory = values[kept], theory[kept]
    # Trial by trial, since the objective of each has a theory of its own.
    gap = values - theory
    z = np.nan if np.isnan(gap).any() else 0.0
    beyond = abs(gap.mean()) - TOLERANCE
    if beyond > 0:
        z = beyond / (gap.std(ddof=1) / np.sqrt(len(gap)))
    return {
        "median": np.median(values),
        "mean": values.mean(),
        "standard_error": values.std(ddof=1) / np.sqrt(len(values)),
        "theory": theory.mean(),
        "z": z,
    }


def measure(
    problem: Problem, method: Method, sizes: Sequence[int], key: jax.Array
) -> list[dict[str, Any]]:
    """Rows of one estimator, one for each number of directions and measure.

    Among hundreds of closed forms a few lie beyond 3 standard errors by chance. Such a
    size is measured again with fresh noise and ten times the trials, and that is what
    is reported: chance does not survive it, an error would.
    """

    def run(key, sizes, num_trials):
        problem_key, noise_key = jax.random.split(key)
        trials = draw_trials(problem, problem_key, num_trials)
        gradient = np.asarray(trials.gradient)
        found = {}
        for size, estimate in estimates(
            problem, method, sizes, trials, noise_key
        ).items():
            by_measure = errors(estimate, gradient, problem.tau, method, size)
            found[size] = {name: summary(*pair) for name, pair in by_measure.items()}
        return found

    counts = dict.fromkeys(sizes, TRIALS)
    found = run(key, sizes, TRIALS)
    for size in sizes:
        if any(stats["z"] > 3 for stats in found[size].values()):
            counts[size] = 10 * TRIALS
            found |= run(jax.random.fold_in(key, size), [size], counts[size])
    return [
        {
            "num_directions": size,
            "queries": size + method.extra_queries,
            "trials": counts[size],
            "measure": name,
            **stats,
        }
        for size in sizes
        for name, stats in found[size].items()
    ]


def relative(frame: pd.DataFrame, by: list[str], group: list[str]) -> pd.DataFrame:
    """Rows of errors with `ratio`: the mean error over the sphere's of the group."""
    frame = frame[frame["measure"].isin(("error", "tau_error"))]
    keys = [*group, "measure"]
    sphere = frame[frame["method"] == "sphere"][[*keys, "mean"]]
    found = frame.merge(sphere, on=keys, suffixes=("", "_sphere"))
    return found.assign(ratio=found["mean"] / found["mean_sphere"])[
        [*by, *keys, "mean", "standard_error", "theory", "ratio"]
    ]
