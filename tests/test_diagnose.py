"""diagnose: signal and noise in closed form, and smoothings whose best is known."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_eager import COMPILED

import zojax
from zojax.perturbations import (
    coordinate,
    gaussian,
    lazy,
    low_rank,
    orthogonal,
    rademacher,
    restrict,
    simplex,
    sphere,
)

# -- signal and noise ------------------------------------------------------------------

D = 16
SLOPES = np.linspace(0.5, 1.5, D)


def linear(x):
    """In float64, so that nothing is lost but what the float32 result loses."""
    return float(SLOPES @ np.asarray(x, np.float64))


def of_linear(sampler, number, key=0, f=linear, **options):
    options = {"num_repeats": 48, "num_smoothings": 0, **options}
    start = np.zeros(D, np.float32)
    return zojax.diagnose(f, start, 0.1, number, key=key, sampler=sampler, **options)


@pytest.mark.parametrize(
    ("sampler", "number", "expected"),
    [
        (gaussian(), 4, 4 / (D + 1)),
        (rademacher(), 4, 4 / (D - 1)),
        (sphere(), 8, 8 / (D - 1)),
        (coordinate(), 4, 4 / (D - 1)),
        (orthogonal(), 4, 4 / (D - 4)),
        (rademacher(), 1, 1 / (D - 1)),
    ],
)
def test_signal_to_noise_in_closed_form(sampler, number, expected):
    """The mean squared errors of the README's table; within 4 standard errors."""
    found = of_linear(sampler, number)
    assert found.signal_to_noise_error < 0.3 * expected
    assert abs(found.signal_to_noise - expected) < 4 * found.signal_to_noise_error
    ratio = found.signal_to_noise
    np.testing.assert_allclose(found.agreement, ratio / (1 + ratio), rtol=1e-9)
    needed = number / ratio
    if sampler.design == "orthogonal":  # d / K - 1 is 1 at K = d / 2
        needed = (number + needed) / 2
    np.testing.assert_allclose(found.directions_needed, needed, rtol=1e-9)
    assert abs(found.directions_needed / (number / expected) - 1) < 1


def test_its_error_is_that_over_keys():
    """40 keys, 8 repeats each: mean within 4 errors, the jackknife a bit too large."""
    found = [of_linear(rademacher(), 2, key=key, num_repeats=8) for key in range(40)]
    ratios = np.array([x.signal_to_noise for x in found])
    spread = ratios.std(ddof=1)
    assert abs(ratios.mean() - 2 / (D - 1)) < 4 * spread / math.sqrt(40)
    claimed = np.mean([x.signal_to_noise_error for x in found])
    assert 0.8 < claimed / spread < 1.8


def test_against_the_points_that_were_asked():
    """All inner products, and a jackknife that leaves each out, from f's own calls."""
    repeats, number, d, mu = 5, 3, 6, 0.25
    points, values = [], []

    def f(x):
        points.append(np.array(x, np.float64))
        values.append(float(np.sum(x**2) + x[0]))
        return values[-1]

    found = zojax.diagnose(
        f, np.arange(d, dtype=np.float32), mu, number, key=3, num_repeats=repeats
    )
    # Twice at params, both sides of each direction and of each estimate, 8 directions
    # at 6 smoothings.
    asked = 2 * repeats * number
    assert len(points) == 2 + asked + 2 * repeats + 2 * 8 * 6
    np.testing.assert_array_equal(points[:2], [np.arange(d)] * 2)
    x, y = (np.array(a[2 : 2 + asked]) for a in (points, values))
    rows = (x[::2] - x[1::2]) / (2 * mu)
    np.testing.assert_allclose(np.abs(rows), 1, rtol=1e-5)
    along = ((y[::2] - y[1::2]) / (2 * mu))[:, None] * rows
    g = along.reshape(repeats, number, d).mean(axis=1)

    def measured(g):
        products = g @ g.T
        others = ~np.eye(len(g), dtype=bool)
        signal, square = products[others].mean(), np.diag(products).mean()
        return signal / (square - signal), signal / square

    ratio, agreement = measured(g)
    without = [measured(np.delete(g, r, axis=0))[0] for r in range(repeats)]
    error = math.sqrt((repeats - 1) * np.var(without))
    np.testing.assert_allclose(found.signal_to_noise, ratio, rtol=1e-3)
    np.testing.assert_allclose(found.signal_to_noise_error, error, rtol=1e-3)
    np.testing.assert_allclose(found.agreement, agreement, rtol=1e-3)

    # f's own slopes and curvatures: 2 x + (1, 0, ..), and H = 2 I.
    ends = np.array(points[2 + asked : 2 + asked + 2 * repeats])
    steps = (ends[::2] - ends[1::2]) / 2
    size = np.linalg.norm(g, axis=1, keepdims=True)
    np.testing.assert_allclose(steps, mu * np.sqrt(d) * g / size, atol=1e-4)
    slope, bend = g @ (2 * np.arange(d) + np.eye(d)[0]), 2 * np.sum(g**2, axis=1)
    rate = lambda kept: slope[kept].sum() / bend[kept].sum()
    everyone = np.arange(repeats)
    without = [rate(everyone != r) for r in everyone]
    error = math.sqrt((repeats - 1) * np.var(without))
    np.testing.assert_allclose(found.learning_rate, rate(everyone), rtol=1e-3)
    np.testing.assert_allclose(found.learning_rate_error, error, rtol=1e-2)


def test_no_noise_at_all():
    """All of a basis: the noise is rounding, and no NaN comes of it."""
    found = of_linear(orthogonal(), D, num_repeats=4)
    assert found.signal_to_noise == math.inf
    assert found.signal_to_noise_error == 0
    np.testing.assert_allclose(found.agreement, 1, rtol=1e-5)
    assert found.directions_needed == D / 2
    assert of_linear(simplex(), D, num_repeats=4).directions_needed is None


@pytest.mark.parametrize(
    ("f", "start"),
    [
        (lambda x: 3.0, 1.0),
        (lambda x: jnp.sum(x**2), 0.0),  # even: no slope at any smoothing
        (lambda x: 1e30 + jnp.sum(x), 1.0),
    ],
)
def test_no_signal_at_all(f, start):
    found = zojax.diagnose(f, jnp.full(4, start), 0.1, 3, key=0)
    assert found[:4] == (0, 0, 0, math.inf)
    assert found.lost == 1
    assert found.noise == found.num_nonfinite == 0
    assert found[8:13] == (None,) * 5


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_neither_overflow_nor_underflow(size):
    plain = of_linear(rademacher(), 4, num_repeats=4)
    found = of_linear(rademacher(), 4, f=lambda x: size * linear(x), num_repeats=4)
    np.testing.assert_allclose(found[:3], plain[:3], rtol=1e-4)


# -- the learning rate -----------------------------------------------------------------

HALF = np.random.default_rng(3).normal(size=(D, D)) / 4
BEND = HALF @ HALF.T + np.diag(np.linspace(0.1, 2, D))  # H, not diagonal


def quadratic(x):
    """slopes . x + x'Hx / 2, whose gradient at 0 is the slopes."""
    x = np.asarray(x, np.float64)
    return float(SLOPES @ x + x @ BEND @ x / 2)


def best_rate(number, gaussian_rows, noise=0.0):
    """K / [tr H + (K + 1) q - 2 r], with E of noise s^2 I added to the gradient's."""
    square, along = np.sum(SLOPES**2), SLOPES @ BEND @ SLOPES
    own = 0.0 if gaussian_rows else np.sum(np.diag(BEND) * SLOPES**2)
    trace, extra = np.trace(BEND), noise**2
    # Each direction's noise is its own: of K of them nothing of it is in E<g_j, g_k>.
    one = (square + D * extra) * trace + 2 * (along + extra * trace)
    one -= 0.0 if gaussian_rows else 2 * (own + extra * trace)
    return square / (one / number + (1 - 1 / number) * along)


@pytest.mark.parametrize("make", [gaussian, rademacher])
@pytest.mark.parametrize("number", [1, 4])
def test_the_learning_rate_in_closed_form(make, number):
    """Within 4 standard errors, below a quarter of it; signs know of the diagonal."""
    expected = best_rate(number, make is gaussian)
    found = of_linear(make(), number, f=quadratic, num_repeats=40)
    error = found.learning_rate_error
    assert 0 < error < 0.25 * expected
    assert abs(found.learning_rate - expected) < 4 * error


@pytest.mark.parametrize("make", [gaussian, rademacher])
@pytest.mark.parametrize("number", [1, 4])
def test_no_other_step_lowers_a_quadratic_more(make, number):
    """Oracle: 50,000 steps of numpy's.

    E f(0 - a g) is least at the closed form's a, and 0 again at twice of it.
    """
    random, draws = np.random.default_rng(number), 50_000
    shape = draws, number, D
    rows = random.normal(size=shape)
    rows = np.sign(rows) if make is rademacher else rows
    g = np.einsum("nkd,nk->nd", rows, rows @ SLOPES) / number
    best = best_rate(number, make is gaussian)
    along, bent = g @ SLOPES, np.einsum("nd,de,ne->n", g, BEND, g)
    change = lambda a: a**2 * bent / 2 - a * along
    for a in (0.7 * best, 1.4 * best):
        further = change(a) - change(best)
        assert further.mean() > 4 * further.std() / math.sqrt(draws)
    at_twice = change(2 * best)
    assert abs(at_twice.mean()) < 4 * at_twice.std() / math.sqrt(draws)


def test_noise_of_minibatches_shortens_it():
    """Linear noise of s = 0.7, drawn by the query key: the closed form that has it."""
    noise, bend = 0.7, jnp.asarray(BEND, jnp.float32)

    @jax.jit
    def f(x, query_key):
        slopes = SLOPES + noise * jax.random.normal(query_key, (D,))
        return slopes @ x + x @ bend @ x / 2

    start, options = jnp.zeros(D), {"num_repeats": 128, "num_smoothings": 0}
    found = zojax.diagnose(f, start, 0.1, 1, key=5, sampler=rademacher(), **options)
    error, expected = found.learning_rate_error, best_rate(1, False, noise)
    assert abs(found.learning_rate - expected) < 4 * error
    assert best_rate(1, False) - found.learning_rate > 3 * error


def test_a_rate_without_an_end():
    """Where f bends downwards no step is too long; a straight line knows of none."""
    found = of_linear(rademacher(), 2, f=lambda x: -quadratic(x), num_repeats=8)
    assert found.learning_rate == math.inf
    # exact sums: the curvature is 0, not rounding
    found = zojax.diagnose(
        lambda x: float(x[0]), np.zeros(2), 0.25, 1, key=0, num_smoothings=0
    )
    assert found.learning_rate == math.inf
    assert found.learning_rate_error == 0


# -- noise -----------------------------------------------------------------------------


def test_noise_that_both_sides_share():
    """It is f's own, and in no difference: the ratio is that without noise."""
    f = lambda x, query_key, slopes: slopes @ x + 3 * jax.random.normal(query_key)
    slopes = jnp.asarray(SLOPES, jnp.float32)
    found = zojax.diagnose(
        f, jnp.zeros(D), 0.1, 4, key=1, num_repeats=48, num_smoothings=0, slopes=slopes
    )
    assert abs(found.noise - 3) < 4 * 3 / math.sqrt(2 * 47)
    assert abs(found.signal_to_noise - 4 / (D - 1)) < 4 * found.signal_to_noise_error


def test_noise_that_they_do_not_share():
    """E|g - E g|^2 = [(d - 1) |grad|^2 + d s^2 / (2 mu^2)] / K for noise s, signs."""
    random, s, mu, number = np.random.default_rng(0), 0.5, 0.1, 4
    f = lambda x: linear(x) + s * random.normal()
    found = of_linear(rademacher(), number, f=f, num_repeats=96)
    square = np.sum(SLOPES**2)
    noise = ((D - 1) * square + D * s**2 / (2 * mu**2)) / number
    assert abs(found.noise - s) < 4 * s / math.sqrt(2 * 95)
    error = found.signal_to_noise_error
    assert error < 0.3 * square / noise
    assert abs(found.signal_to_noise - square / noise) < 4 * error
    plain = 4 / (D - 1)
    assert found.signal_to_noise < plain - 4 * error  # it is seen


# -- the smoothing ---------------------------------------------------------------------

WIDE = np.linspace(1.1, 1.9, 24)
SLOPE = np.sqrt(np.sum((3 * WIDE**2) ** 2))
SIGNS, NORMAL = (rademacher(), 1.0), (gaussian(), 15.0)  # and E v^6


def cubes(x):
    return np.sum(np.asarray(x, np.float64) ** 3)


def noisy():
    random = np.random.default_rng(1)
    return lambda x: float(cubes(x) + 1e-2 * random.normal())


# Makers of f(x) = c + sum x^3, the dtype of params, what half a difference is off, and
# directions. It is off by rounding of f's values (steps of 2^-10 at 1e4 in float32, of
# 2^-39 in float64, each off by step / sqrt(12)), by noise, or by rounding of params
# (2^-7) times the gradient: at random where directions are no multiples of a step.
KNOWN = {
    "float32": (lambda: lambda x: 1e4 + cubes(x), "float32", 2**-10 / 24**0.5, SIGNS),
    "float64": (lambda: lambda x: 1e4 + cubes(x), "float64", 2**-39 / 24**0.5, SIGNS),
    "bfloat16": (lambda: cubes, "bfloat16", 2**-7 / 24**0.5 * SLOPE, NORMAL),
    "noise": (noisy, "float32", 1e-2 / 2**0.5, SIGNS),
}


@pytest.mark.parametrize("away", [1 / 30, 1.0, 30.0])
@pytest.mark.parametrize("name", KNOWN)
def test_the_best_smoothing_is_found(name, away):
    """e^2 = (a/mu)^2 + (b mu^2)^2 is least at (a / sqrt(2) b)^(1/3): to 1.6 times.

    8 directions say a and b to about a quarter, which is less in a cube root.
    """
    make, dtype, off, (sampler, sixth) = KNOWN[name]
    bend = math.sqrt(sixth * len(WIDE))  # rms of sum_j v_j^3
    best = (off / (math.sqrt(2) * bend)) ** (1 / 3)
    error = lambda mu: math.hypot(off / mu, bend * mu**2) / SLOPE
    with jax.enable_x64(dtype == "float64"):
        start, mu = jnp.asarray(WIDE, dtype), away * best
        options = {"key": 0, "sampler": sampler, "num_repeats": 3}
        found = zojax.diagnose(make(), start, mu, 4, **options)
    assert 1 / 1.6 < found.suggested_smoothing / best < 1.6
    assert 1 / 2 < found.suggested_error / error(best) < 2
    assert 1 / 3 < found.smoothing_error / error(mu) < 3
    # The textbook's, of the largest errors instead of the mean ones.
    if name in ("float32", "float64"):
        eps = 1e4 * float(np.finfo(dtype).eps) / 2
        classic = (3 * eps / (6 * bend)) ** (1 / 3)
        assert 1 / 2 < found.suggested_smoothing / classic < 2


@pytest.mark.parametrize(("sampler", "sixth"), [SIGNS, NORMAL])
def test_smoothings_that_params_swallow_say_nothing(sampler, sixth):
    """From far below the steps of bfloat16, where derivatives agree on too little.

    Signs may hit a step exactly, where rounding seems to be less than it is.
    """
    off, bend = 2**-7 / 24**0.5 * SLOPE, math.sqrt(sixth * len(WIDE))
    best = (off / (math.sqrt(2) * bend)) ** (1 / 3)
    start = jnp.asarray(WIDE, jnp.bfloat16)
    options = {"key": 0, "sampler": sampler, "num_repeats": 3, "num_smoothings": 5}
    found = zojax.diagnose(cubes, start, best / 100, 4, **options)
    assert 1 / 1.6 < found.suggested_smoothing / best < 1.6
    assert found.smoothing_error > 0.4


def test_the_suggestion_is_at_the_end_of_what_was_asked():
    """Of a straight line the largest is best; of one without rounding, the smallest."""
    found = of_linear(None, 4, num_repeats=3, num_smoothings=3)
    assert 0.3 < found.suggested_smoothing / (0.1 * 4**3) <= 1
    found = of_linear(None, 4, num_repeats=3, num_smoothings=1)
    assert 0.3 < found.suggested_smoothing / 0.4 <= 1
    with jax.enable_x64(True):
        start, options = jnp.asarray(WIDE), {"num_repeats": 3, "num_smoothings": 2}
        found = zojax.diagnose(cubes, start, 1e-1, 4, key=0, **options)
    assert 1 <= found.suggested_smoothing / (1e-1 / 4**2) < 3


def test_differences_that_are_exact_by_chance():
    """Powers of two: no error is seen, and f's values are rounded all the same."""
    f = lambda x: jnp.float32(1024) + 4 * x[0]
    options = {"key": 0, "num_repeats": 3, "num_smoothings": 1}
    found = zojax.diagnose(f, jnp.ones(1), 2.0**-6, 4, **options)
    assert found.suggested_smoothing == 2.0**-4
    rounding = 1028 * 2.0**-23 / 24**0.5
    np.testing.assert_allclose(found.suggested_error, rounding * 2**4 / 4, rtol=1e-3)
    assert found.smoothing_error == 0


def test_nothing_is_suggested_where_f_fails():
    """Of a straight line the largest, but not where a half of the points are NaN."""
    f = lambda x: linear(x) if x[0] + x[1] < 1 else np.nan
    found = of_linear(rademacher(), 4, f=f, num_repeats=3, num_smoothings=3)
    assert found.num_nonfinite == 0
    assert 0.1 < found.suggested_smoothing <= 0.4
    f = lambda x: float(-np.sum(np.log(x))) if np.min(x) > 0 else np.nan
    found = zojax.diagnose(f, np.ones(5, np.float32), 0.3, 4, key=0, num_repeats=3)
    assert found.suggested_smoothing < 0.1


def test_a_difference_that_is_all_wrong_says_nothing():
    """sin(20 x) at mu = 1 and above: derivatives agree there only by chance."""
    f = jax.jit(lambda x: jnp.sum(jnp.sin(20 * x)))
    found = zojax.diagnose(f, jnp.linspace(0.5, 1.5, 30), 1.0, 8, key=1, num_repeats=3)
    assert found.suggested_smoothing < 0.1
    assert found.smoothing_error > 0.5 > found.suggested_error


def test_a_staircase_wants_a_smoothing_beyond_its_steps():
    """Steps q of each of d terms are off by q / sqrt(12); below them all agree on 0."""
    step, cubed = 0.01, lambda x: np.asarray(x, np.float64) ** 3
    f = lambda x: float(np.sum(step * np.round(cubed(x) / step)))
    best = (step / 24**0.5 / math.sqrt(2)) ** (1 / 3)  # both by the root of d
    options = {"key": 0, "num_repeats": 3, "num_smoothings": 6}
    for away in (1 / 1000, 1 / 10):
        found = zojax.diagnose(f, jnp.asarray(WIDE), away * best, 8, **options)
        assert 1 / 2 < found.suggested_smoothing / best < 2
        assert found.suggested_error < 0.02 < found.smoothing_error


@pytest.mark.parametrize("given", [1e-4, 3e-3, 1e-1])
def test_the_error_of_a_network_is_near_its_least(given):
    """Rounding inside f, tanh: measured along other directions, against autodiff."""
    x, inputs = (
        jnp.linspace(0.5, 1.5, 30),
        jax.random.normal(jax.random.key(0), (64, 30)),
    )
    matrix = 0.3 * jax.random.normal(jax.random.key(1), (30, 40))
    f = jax.jit(
        lambda x: jnp.mean((jnp.tanh(inputs * x @ matrix).sum(axis=1) - 1) ** 2)
    )
    slopes = np.asarray(jax.grad(f)(x), np.float64)
    rows = np.sign(np.random.default_rng(0).normal(size=(24, 30))).astype(np.float32)
    at = lambda mu: [
        (float(f(x + mu * v)) - float(f(x - mu * v))) / (2 * mu) for v in rows
    ]
    exact = rows @ slopes
    error = lambda mu: np.linalg.norm(at(mu) - exact) / np.linalg.norm(exact)
    found = zojax.diagnose(f, x, given, 4, key=0, num_repeats=3)
    least = min(map(error, 10.0 ** np.arange(-5, 0.1, 0.25)))
    assert error(found.suggested_smoothing) < 3 * least
    assert 1 / 3 < found.smoothing_error / error(given) < 3
    assert 1 / 5 < found.suggested_error / error(found.suggested_smoothing) < 5


def test_directions_that_f_does_not_know():
    """Most coordinates are not in it: that is no rounding."""
    f = lambda x: float(np.asarray(x, np.float64)[0] ** 3)
    options = {"key": 0, "sampler": coordinate(), "num_repeats": 3}
    found = zojax.diagnose(f, jnp.ones(4), 1e-2, 4, **options)
    assert 1e-3 < found.suggested_smoothing < 1e-1
    assert found.suggested_error < 1e-3


# -- what it takes ---------------------------------------------------------------------


def test_shares_by_hand():
    """As check_smoothing's: a sign on a x^2 + b x, and bfloat16 that holds still."""
    a, b, x, mu = 3.0, -1.0, 0.5, 0.1
    with jax.enable_x64(True):
        f = lambda x: a * x**2 + b * x
        found = zojax.diagnose(f, jnp.asarray(x), mu, 2, key=0, num_repeats=3)
    even, odd = a * mu**2, (2 * a * x + b) * mu
    np.testing.assert_allclose(found.curvature, even / np.hypot(even, odd), rtol=1e-9)
    assert found.lost < 1e-12
    np.testing.assert_allclose(found.kept, 1, rtol=1e-9)
    still = jnp.ones(64, jnp.bfloat16)
    found = zojax.diagnose(lambda x: jnp.sum(x), still, 1e-3, 2, key=0, num_repeats=3)
    assert found.kept == found.signal_to_noise == 0


def test_points_that_fail():
    """They are left out of estimates that others are made of, and counted."""

    def f(x):
        return linear(x) if x[0] < 0.05 or x[1] < 0.05 else np.nan

    found = of_linear(rademacher(), 4)
    some = of_linear(rademacher(), 4, f=f)
    assert 60 < some.num_nonfinite < 130  # a quarter of 384
    assert 0 < some.signal_to_noise < found.signal_to_noise  # fewer directions
    assert some.learning_rate == math.inf  # of a straight line
    others = [x for x in some._replace(learning_rate=0.0) if x is not None]
    assert np.isfinite(others).all()
    inf = of_linear(rademacher(), 4, f=lambda x: np.inf if np.isnan(f(x)) else f(x))
    assert inf == some


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda x: math.nan, "0 of 8 values at params"),
        (lambda x: math.inf if x.any() else 0.0, "differences in 0 of 8 repeats"),
        (lambda x: 1.0 if x.any() else math.inf, "0 of 8 values at params"),
    ],
)
def test_nothing_finite(f, words):
    with pytest.raises(ValueError, match=rf"value_fn must be finite.*{words}"):
        zojax.diagnose(f, np.zeros(3), 0.1, 2, key=0)


def test_frozen_leaves_are_left_alone():
    """They are passed on as they are, and the others asked as without them."""
    params = {"w": np.ones(5, np.float32), "ids": np.arange(3), "none": None}
    mask = {"w": True, "ids": False, "none": False}

    def f(params):
        assert type(params["w"]) is np.ndarray
        value = float(np.sum(params["w"] ** 3) + params["ids"][1])
        np.testing.assert_array_equal(params["ids"], [0, 1, 2])
        params["w"][:] = params["ids"][:] = 0  # its own copies
        return value

    sampler = restrict(rademacher(), mask)
    found = zojax.diagnose(f, params, 0.1, 3, key=0, sampler=sampler)
    alone = lambda params: float(np.sum(params["w"] ** 3)) + 1
    assert found == zojax.diagnose(alone, {"w": np.ones(5, np.float32)}, 0.1, 3, key=0)
    np.testing.assert_array_equal(params["ids"], [0, 1, 2])
    nothing = restrict(rademacher(), dict.fromkeys(params, False))
    found = zojax.diagnose(f, params, 0.1, 3, key=0, sampler=nothing)
    assert (found.signal_to_noise, found.kept, found.lost) == (0, 1, 1)


@pytest.mark.parametrize("sampler", [low_rank(1), lazy(rademacher()), None])
@pytest.mark.parametrize("x64", [False, True])
def test_strict_modes_and_mixed_dtypes(sampler, x64):
    """Leaves of three widths, where no two dtypes and no two ranks may meet."""

    def f(params):
        cast = (jnp.sum(x.astype(jnp.float32) ** 3) for x in jax.tree.leaves(params))
        return sum(cast, jnp.zeros((), jnp.float32))

    with contextlib.ExitStack() as stack:
        for context in (
            jax.enable_x64(x64),
            jax.numpy_dtype_promotion("strict"),
            jax.numpy_rank_promotion("raise"),
            jax.debug_nans(True),
        ):
            stack.enter_context(context)
        params = {
            "w": jnp.linspace(1, 2, 6, dtype=jnp.bfloat16).reshape(2, 3),
            "b": [jnp.asarray(0.5, jnp.float32), (jnp.zeros((0, 2)), None)],
            "c": jnp.ones(3, float),
        }
        found = zojax.diagnose(f, params, 0.1, 4, key=0, sampler=sampler)
    assert found.signal_to_noise > 0
    assert found.smoothing_error < 0.3


def test_a_second_call_compiles_nothing():
    f, x, made = jax.jit(lambda x: jnp.sum(x**3)), jnp.ones(12), rademacher()
    for key in range(2):
        before = len(COMPILED)
        zojax.diagnose(f, x, 0.1, 2, key=key, sampler=made, num_repeats=3)
    assert len(COMPILED) == before


def test_it_reads_well():
    found = of_linear(rademacher(), 4, num_repeats=3)
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == list(found._fields)
    assert lines[-1].split() == ["num_nonfinite", "0"]
    assert lines[0].split()[1] == f"{found.signal_to_noise:.3g}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value_fn": 3.0}, "value_fn must be callable"),
        ({"value_fn": lambda x: x}, "real scalar"),
        ({"params": None}, "params=None"),
        ({"smoothing": 0.0}, "smoothing must be a number > 0, got 0.0"),
        ({"smoothing": lambda count: 1.0}, "smoothing must be a number > 0"),
        ({"smoothing": np.nan}, "smoothing must be"),
        ({"num_directions": 0}, "num_directions must be an int >= 1, got 0"),
        ({"num_directions": 3, "sampler": simplex()}, "a power of two"),
        ({"num_repeats": 2}, "num_repeats must be an int >= 3, got 2"),
        ({"num_smoothings": -1}, "num_smoothings must be an int >= 0, got -1"),
        ({"sampler": 3}, "sampler must be a zojax.Sampler"),
        ({"key": None}, "key must be"),
    ],
)
def test_arguments_are_checked(change, words):
    given = {"value_fn": jnp.sum, "params": jnp.ones(3), "smoothing": 0.1, "key": 0}
    with pytest.raises(ValueError, match=words):
        zojax.diagnose(**{**given, "num_directions": 2, **change})
    with pytest.raises(TypeError, match="num_repeat"):  # a word that f does not know
        zojax.diagnose(**given, num_directions=2, num_repeat=3)
