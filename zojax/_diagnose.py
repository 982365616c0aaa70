"""Whether an estimate is any good: signal and noise, a step, a better smoothing."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zojax._calibration import as_given, noise_deviation
from zojax._check_smoothing import shares_of_params, shares_of_values, unit_of
from zojax._checks import check_int, check_number
from zojax._directions import Directions, combine, dimension
from zojax._evaluation import BOTH_SIDES, key_at_params, query_keys
from zojax._keys import canonical_key, key_data, purpose_key, step_key
from zojax._numerics import PyTree, tree_dot
from zojax._objective import Objective, answer_of, as_objective, check_params
from zojax._signal import learning_rate, signal_to_noise
from zojax._smoothing_error import Probed, Suggestion, suggested
from zojax.perturbations import rademacher
from zojax.perturbations._sampler import Sampler, check_sampler, perturb, sampler_at

STEP = 4.0  # between neighbouring smoothings that are compared
NUM_PROBES = 8  # directions that they are compared along, at most
FEW_ENTRIES = 2**20  # of directions that are held


class Diagnosis(NamedTuple):
    """What :func:`diagnose` measured; ``print`` shows a field a line.

    Attributes:
      signal_to_noise: |E g|^2 / E|g - E g|^2 of the estimate g of K directions; about
        K / (d - 1) for signs and a smooth f without noise. Below 0 it is 0 within its
        error; inf if the noise is less than rounding of the sums.
      signal_to_noise_error: its standard error.
      agreement: E<g, g'> / E|g|^2 of two independent estimates: their cosine, in the
        mean. That of one estimate with the gradient is about the root of it.
      directions_needed: the K at which signal and noise are equal, other things being
        so, as little known as their ratio; inf if no signal was seen, None for a
        sampler whose rows are neither independent nor orthogonal().
      kept, lost, curvature: as :func:`check_smoothing` returns them.
      noise: the standard deviation of f's values at params, in units of f: 0 if two
        calls agree.
      smoothing_error: how far the directional derivatives are off at the given
        smoothing, by rounding, noise that both sides do not share and truncation, over
        their size at the suggestion: 1 or more if nothing of them is right. This and
        the following are None where no smoothing was compared, or f changed at none.
      suggested_smoothing: that of the least such error.
      suggested_error: that error.
      learning_rate: the step of plain SGD along such estimates that lowers f the most
        in the mean, to second order: f falls up to twice of it. inf if f does not bend
        upwards along them, 0 within its error if no slope was seen, None if f is flat
        or finite along fewer than three.
      learning_rate_error: its standard error, by the jackknife.
      num_nonfinite: values that were NaN or infinite, of the 2KR at the smoothing.
    """

    signal_to_noise: float
    signal_to_noise_error: float
    agreement: float
    directions_needed: float | None
    kept: float
    lost: float
    curvature: float
    noise: float
    smoothing_error: float | None
    suggested_smoothing: float | None
    suggested_error: float | None
    learning_rate: float | None
    learning_rate_error: float | None
    num_nonfinite: int

    def __str__(self) -> str:
        """One field a line, with three digits."""
        shown = lambda x: f"{x:.3g}" if isinstance(x, float) else str(x)
        return "\n".join(f"{name:22}{shown(x)}" for name, x in self._asdict().items())


# -- asking ----------------------------------------------------------------------------


class _Question(NamedTuple):
    """An objective at params, and the directions of R repeats, drawn when needed."""

    objective: Objective
    params: PyTree
    repeats: list[Directions]

    def answer(self, point: PyTree, key: jax.Array) -> Any:
        """What f returned."""
        return self.objective.call(as_given(self.params, point), key)

    def row(self, i: int) -> PyTree:
        """Direction i of all."""
        V, k = self._named(i)
        return V.sampler.row(V.key, k, V.num_directions, self.params)

    def values(self, i: int, smoothing: float) -> list[float]:
        """Values on both sides of direction i, NaN if not finite."""
        V, k = self._named(i)
        row, key = self.row(i), query_keys(V.key, k)
        points = (perturb(self.params, row, side * smoothing) for side in BOTH_SIDES)
        return [_number(self.answer(point, key)) for point in points]

    def _named(self, i: int) -> tuple[Directions, jax.Array]:
        r, k = divmod(i, self.repeats[0].num_directions)
        return self.repeats[r], jnp.asarray(k)


def _number(answer: Any) -> float:
    value = float(answer_of(answer, has_aux=False)[0])
    return value if math.isfinite(value) else math.nan


def _repeats(
    sampler: Sampler, params: PyTree, key: Any, num_directions: int, num_repeats: int
) -> list[Directions]:
    """V of the first step of so many runs, whose keys are their own."""
    own = purpose_key(canonical_key(key), "diagnose")

    def repeat(r):
        words, count = key_data(jax.random.fold_in(own, r)), jnp.zeros((), jnp.int32)
        now = sampler_at(sampler, words, count), step_key(words, count)
        V = Directions(*now, num_directions)
        # As many rows live at once as are no matter.
        rows = max(1, FEW_ENTRIES // max(dimension(params, V), 1))
        return dataclasses.replace(V, chunk_size=rows)

    return [repeat(r) for r in range(num_repeats)]


def _at_params(asked: _Question, key: Any, num_repeats: int) -> tuple[Any, float]:
    """(What f answered at params, the deviation of its noise)."""
    keys = [key_at_params(V.key) for V in asked.repeats[:2]]
    answers = [asked.answer(asked.params, own) for own in keys]
    first, second = map(_number, answers)
    if first == second:
        return answers[0], 0.0
    where = asked.objective, asked.params
    noise = noise_deviation(*where, key=key, num_repeats=num_repeats)
    return answers[int(math.isnan(first))], float(noise)


class _Differences(NamedTuple):
    """What f answered along all directions."""

    plus: np.ndarray  # [R, K], NaN if not finite
    minus: np.ndarray

    @property
    def finite(self) -> np.ndarray:
        """Where both sides are."""
        return np.isfinite(self.plus) & np.isfinite(self.minus)

    @property
    def halves(self) -> np.ndarray:
        """Of each two, without overflow."""
        return self.plus / 2 - self.minus / 2


def _asked_everywhere(asked: _Question, mu: float, at_params: Any) -> _Differences:
    """Asks along all directions; raises unless f is finite often enough."""
    shape = len(asked.repeats), asked.repeats[0].num_directions
    values = [asked.values(i, mu) for i in range(math.prod(shape))]
    found = _Differences(*np.array(values).T.reshape(2, *shape))
    number, base = int(found.finite.any(axis=1).sum()), _number(at_params)
    if number < 3 or math.isnan(base):
        where = f"f(params) = {base:g}, and differences in {number} of {shape[0]}"
        accepted = "finite at params, and in 3 repeats or more near them"
        raise ValueError(f"value_fn must be {accepted}, got {where} repeats")
    return found


# -- signal and noise ------------------------------------------------------------------


def _estimates(
    asked: _Question, found: _Differences
) -> tuple[list[Callable[[], PyTree]], float]:
    """Of each repeat with a finite difference, and the unit that they share."""
    finite = found.finite
    derivatives = np.where(finite, found.halves, 0)
    derivatives /= np.maximum(finite.sum(axis=1, keepdims=True), 1)
    unit = float(np.abs(derivatives).max() or 1)
    weights = derivatives / unit  # no square overflows

    def estimate(r):
        return combine(jnp.asarray(weights[r]), asked.params, asked.repeats[r])

    usable = np.flatnonzero(finite.any(axis=1))
    return [functools.partial(estimate, r) for r in usable], unit


def _products(estimates: list[Callable[[], PyTree]]) -> tuple[np.ndarray, np.ndarray]:
    """|g_r|^2, and <g_r, sum of the others>, of estimates that are made twice.

    Forth and back, so that not all are held, and none is subtracted from a sum.
    """
    number = len(estimates)
    squares, crossed = np.zeros(number), np.zeros(number)
    for order in (range(number), reversed(range(number))):
        before = None
        for i in order:
            g = estimates[i]()
            squares[i] = tree_dot(g, g)
            if before is not None:
                crossed[i] += float(tree_dot(g, before))
            before = g if before is None else jax.tree.map(jnp.add, before, g)
    return squares, crossed


def _along(
    asked: _Question, estimates: list[Callable[[], PyTree]], mu: float, base: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and curvatures of f along each estimate, asked as far as a row is long.

    With keys of their own, so that an estimate's own noise is not taken for a slope;
    the base is f at params, or None to ask for it with each of these keys.
    """
    size = math.sqrt(dimension(asked.params, asked.repeats[0]))
    slopes, curvatures = np.zeros((2, len(estimates)))
    for r, estimate in enumerate(estimates):
        g, key = estimate(), key_at_params(asked.repeats[r].key)
        norm = math.sqrt(float(tree_dot(g, g)))
        if norm == 0:
            continue
        step, ask = mu * size / norm, lambda x, key=key: _number(asked.answer(x, key))
        plus, minus = (ask(perturb(asked.params, g, s * step)) for s in BOTH_SIDES)
        here = ask(asked.params) if base is None else base
        slopes[r] = (plus / 2 - minus / 2) / step
        curvatures[r] = ((plus - here) + (minus - here)) / step**2
    return slopes, curvatures


def _needed(ratio: float, V: Directions) -> float | None:
    """K for a ratio of 1."""
    if V.sampler.design not in ("independent", "orthogonal"):
        return None
    if ratio <= 0:
        return math.inf
    # Noise is N/K, and of rows that are not drawn twice N/K less the signal itself.
    number = V.num_directions / ratio
    if V.sampler.design == "orthogonal":
        number = (V.num_directions + number) / 2
    return max(1.0, number)


# -- the smoothing ---------------------------------------------------------------------


def _search(
    asked: _Question, given: float, found: _Differences, unit: float, reach: int
) -> Suggestion:
    """Asks at so many smoothings to each side, along the first of the directions."""
    if reach == 0:
        return Suggestion()
    probes = range(min(NUM_PROBES, found.plus.size))
    smoothings = given * STEP ** np.arange(-reach, reach + 1.0)

    def halves(mu):
        if mu == given:
            return found.halves.ravel()[: len(probes)]
        plus, minus = np.array([asked.values(i, mu) for i in probes]).T
        return plus / 2 - minus / 2

    along = np.array([halves(mu) for mu in smoothings.tolist()])
    shares = [shares_of_params(asked.params, asked.row(0), mu) for mu in smoothings]
    rounded = np.array([share for _, share in shares])
    largest = max(float(np.nanmax(np.abs(y))) for y in found)
    rounding = unit * largest / math.sqrt(24)
    return suggested(given, Probed(smoothings, along, rounded, rounding))


def diagnose(
    value_fn: Callable[..., Any],
    params: PyTree,
    smoothing: float,
    num_directions: int,
    *,
    key: jax.Array | int,
    sampler: Sampler | None = None,
    num_repeats: int = 8,
    num_smoothings: int = 3,
    **extra_args: Any,
) -> Diagnosis:
    """Measures what an estimate of K central differences is worth, at these params.

    With g_1 .. g_R, estimates along directions of their own,

        signal  S = mean of <g_i, g_j> over i != j          E[S] = |E g|^2
        noise   N = mean of |g_i|^2, less S                 E[N] = E|g - E g|^2

    both without bias. S / N has a standard error of sqrt(2 / (R (R - 1) d)) if N is
    much larger: a small ratio in many dimensions needs more repeats. As E g is that of
    f smoothed over mu, a bias is no noise; it is in ``smoothing_error``.

    That and the suggestion compare derivatives D(mu) along a few of the directions,
    with smoothings 4 times apart. If D is off by

        e(mu)^2 = (a / mu)^2 + (b mu^2)^2,

    noise or rounding, and truncation, neighbours differ by the errors of both, so that
    each pair bounds a and b. Those are the least bounds, of pairs from where f changes
    in half of the directions, up to the first that no longer agrees to half; a is at
    least what rounding does to params and to f's result. The suggestion has the least
    e, mu^3 = a / (sqrt(2) b), within what was asked: if it is near an end of that, ask
    again from there. Forward differences want a smaller one, with an error that grows
    as mu.

    The learning rate is the mean slope of f along the g_r over its mean curvature,

        E<grad f, g> / E g'H g,

    with f asked on both sides of params along each, as far away as along a direction.
    With independent signs and no noise that is

        K / [tr H + (K + 1) q - 2 r],  q = s'H s / |s|^2,  r = sum_i H_ii s_i^2 / |s|^2

    of the gradient s, without r for gaussian rows. A value_fn with ``query_key`` is
    asked with keys of its own there: noise of a minibatch drawn by it is in E g'H g,
    and in no slope, so that the rate is less by so much; noise of a batch that is given
    is not seen. It is the rate for these params alone: as the gradient falls and noise
    does not, it falls too.

    For use outside jit, before a run or between its steps. Up to three vectors like
    params are held, and value_fn is called with one point at a time: 2KR times at mu,
    twice at params (2R times more, if these two differ), 2R times along the estimates,
    and up to 32M times elsewhere.

    Args:
      value_fn: params -> scalar, of any kind, with the extra args by name. If it names
        ``query_key`` it gets a key for each direction, which all smoothings share. It
        gets arrays of numpy where params are such, else of JAX.
      params: pytree at its true scale.
      smoothing: mu > 0, in units of params.
      num_directions: K >= 1, those of a step.
      key: a threefry key or an int seed; the directions are not those of a run with it.
      sampler: rademacher() by default.
      num_repeats: R >= 3.
      num_smoothings: M >= 0, smoothings that are asked to either side of mu, up to
        4^M mu. 0 suggests none.
      extra_args: what value_fn gets besides.

    Returns:
      A :class:`Diagnosis`. Values that are not finite are left out, and counted.

    Raises:
      ValueError: for an argument out of its range, or an f that is not finite.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> x, f = jnp.ones(65), lambda x, scale: 1e4 + scale * jnp.sum(x**3)
      >>> found = zojax.diagnose(f, x, 1e-3, 16, key=0, num_repeats=16, scale=0.1)
      >>> 0.15 < found.signal_to_noise < 0.35  # K / (d - 1) is 0.25
      True
      >>> found.smoothing_error > 0.05, found.suggested_error < 0.01
      (True, True)
      >>> bends = 0.1 * 6 * (65 + (16 + 1) - 2)  # H = 0.6 I
      >>> abs(found.learning_rate - 16 / bends) < 4 * found.learning_rate_error
      True

    Source: U-statistics; a quadratic's line search, in the mean; Moré and Wild, ACM
    TOMS 38(3), 2012 (the difference interval).
    """
    sampler = rademacher() if sampler is None else sampler
    check_sampler("sampler", sampler)
    check_params(params)
    check_number("smoothing", smoothing, 0.0, schedule=False)
    check_int("num_directions", num_directions, 1)
    check_int("num_repeats", num_repeats, 3)
    check_int("num_smoothings", num_smoothings, 0)
    mu, objective = float(smoothing), as_objective(value_fn, False, **extra_args)
    repeats = _repeats(sampler, params, key, num_directions, num_repeats)
    asked = _Question(objective, params, repeats)
    at_params, noise = _at_params(asked, key, num_repeats)
    found, unit = _asked_everywhere(asked, mu, at_params), unit_of(at_params)
    values = found.plus[found.finite], found.minus[found.finite], _number(at_params)
    lost, curvature = shares_of_values(*values, unit)
    estimates, scale = _estimates(asked, found)
    ratio, error, agreement = signal_to_noise(*_products(estimates))
    base = None if noise else _number(at_params)
    step = learning_rate(*_along(asked, estimates, mu, base), mu / scale)
    return Diagnosis(
        ratio,
        error,
        agreement,
        _needed(ratio, repeats[0]),
        shares_of_params(params, asked.row(0), mu)[0],
        lost,
        curvature,
        noise,
        *_search(asked, mu, found, unit, num_smoothings),
        *step,
        int(np.isnan(found).sum()),
    )
