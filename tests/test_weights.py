"""Values -> weights, against numbers worked by hand and float64 definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import weights

NAN, INF = np.nan, np.inf
MU = 0.5  # exact in binary, so that the worked numbers are exact too


def f32(*values):
    return jnp.array(values, jnp.float32)


# Baselines from the values alone, with what else they need filled in.
DIFFERENCES = {
    "forward": lambda y, mu: weights.forward(y, jnp.float32(2.0), mu),
    "central": lambda y, mu: weights.central(y, jnp.full_like(y, 2.0), mu),
    "mean_baseline": weights.mean_baseline,
    "leave_one_out": weights.leave_one_out,
    "optimal_baseline": lambda y, mu: weights.optimal_baseline(
        y, jnp.arange(1.0, 1 + len(y), dtype=y.dtype), mu
    ),
}
ALL_DIFFERENCES = pytest.mark.parametrize("name", list(DIFFERENCES))


# -- worked by hand --------------------------------------------------------------------


def test_forward():
    # differences 3 - 2, 1 - 2, 7 - 2, 2 - 2 over K mu = 4 * 0.5 = 2
    w = weights.forward(f32(3, 1, 7, 2), jnp.float32(2), MU)
    np.testing.assert_array_equal(w, [0.5, -0.5, 2.5, 0.0])


def test_clip():
    # derivatives K w = 4, -0.5, -8, 3 against 3; the bound over K is 0.75
    w = weights.clip(f32(1, -0.125, -2, 0.75), 3.0)
    np.testing.assert_array_equal(w, [0.75, -0.125, -0.75, 0.75])
    # with two of the four values finite the bound over their number is 1.5
    w = weights.clip(f32(1, 0, -2, 0), 3.0, 2)
    np.testing.assert_array_equal(w, [1, 0, -1.5, 0])


def test_central():
    # (3 - 1)/2, (1 - 4)/2, (7 - 7)/2, (0 - 2)/2 = 1, -1.5, 0, -1, over K mu = 2
    w = weights.central(f32(3, 1, 7, 0), f32(1, 4, 7, 2), MU)
    np.testing.assert_array_equal(w, [0.5, -0.75, 0.0, -0.5])


def test_mean_baseline():
    # mean (3 + 1 + 7 + 1)/4 = 3; differences 0, -2, 4, -2 over K mu = 2
    w = weights.mean_baseline(f32(3, 1, 7, 1), MU)
    np.testing.assert_array_equal(w, [0.0, -1.0, 2.0, -1.0])


def test_leave_one_out():
    # means of the others: (1+7+1)/3 = 3, (3+7+1)/3 = 11/3, 5/3, 11/3
    # differences 0, -8/3, 16/3, -8/3 over K mu = 2
    w = weights.leave_one_out(f32(3, 1, 7, 1), MU)
    np.testing.assert_allclose(w, [0, -4 / 3, 8 / 3, -4 / 3], rtol=1e-6)


def test_optimal_baseline():
    # b = (3*1 + 1*2 + 7*1 + 1*4) / (1 + 2 + 1 + 4) = 16/8 = 2
    # differences 1, -1, 5, -1 over K mu = 2
    w = weights.optimal_baseline(f32(3, 1, 7, 1), f32(1, 2, 1, 4), MU)
    np.testing.assert_array_equal(w, [0.5, -0.5, 2.5, -0.5])


def test_record():
    # m = (1 + 3 + 5 + 11)/4 = 5 over the K P = 4 values; y - m = -4 -2 / 0 6
    # S = [(-4) - (-2), 0 - 6]/0.5 = [-4, -12]; T = [1 - 1, 1 - 1]/0.5 = 0
    r = weights.record(f32([1, 3], [5, 11]), f32(1, -1), MU)
    np.testing.assert_array_equal(r.weights, [[-4, -12], [0, 0]])
    assert (float(r.anchor), float(r.mean), int(r.num_finite)) == (1.0, 4.0, 4)


def test_history():
    # levels m = 3, 7 with counts 2, 6: M = 8, b = (2*3 + 6*7)/8 = 6
    # coefficients of S: 1/8; of T: (3 - 6)/8, (7 - 6)/8; the empty record gets 0
    a, m, n = f32(2, 9, 4), f32(1, 5, 3), jnp.array([2, 0, 6])
    w = weights.history(a, m, n, leave_one_out=False)
    np.testing.assert_array_equal(w, [[1 / 8, -3 / 8], [0, 0], [1 / 8, 1 / 8]])
    # M/(M-1): 7 in place of 8
    w = weights.history(a, m, n, leave_one_out=True)
    np.testing.assert_allclose(w, [[1 / 7, -3 / 7], [0, 0], [1 / 7, 1 / 7]], rtol=1e-6)


def test_leave_one_out_of_a_single_sample_does_not_divide_by_zero():
    # M = 1: M - 1 = 0 is replaced by 1
    w = weights.history(f32(5), f32(0), jnp.array([1]), leave_one_out=True)
    np.testing.assert_array_equal(w, [[1, 0]])


# -- values that are not finite --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # finite differences 1 and 5 of two, over 2 mu = 1
        ("forward", [1, 0, 5, 0]),
        ("central", [0.5, 0, 2.5, 0]),
        # mean of 3 and 7
        ("mean_baseline", [-2, 0, 2, 0]),
        ("leave_one_out", [-4, 0, 4, 0]),
        # squared norms 1 and 3: b = (3 + 21)/4 = 6
        ("optimal_baseline", [-3, 0, 1, 0]),
    ],
)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_bad_values_get_weight_zero(name, expected, bad):
    """K is the number of finite values, and means run over those alone."""
    w = DIFFERENCES[name](f32(3, bad, 7, NAN), MU)
    np.testing.assert_array_equal(w, expected)
    # Also where the first value is bad: it is no anchor.
    w = DIFFERENCES[name](f32(bad, 3, NAN, 7), MU)
    assert np.all(np.isfinite(w))
    np.testing.assert_array_equal(w != 0, [False, True, False, True])


def test_a_bad_side_spoils_its_own_direction_only():
    # the finite difference (7 - 5)/2 = 1 over 1 mu
    w = weights.central(f32(3, NAN, 7), f32(INF, 1, 5), MU)
    np.testing.assert_array_equal(w, [0, 0, 2])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_bad_base_value_gives_no_estimate(bad):
    w = weights.forward(f32(3, 7), jnp.float32(bad), MU)
    np.testing.assert_array_equal(w, [0, 0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # (5 - 2)/mu = 6
        ("forward", 6),
        ("central", 3),
        # nothing to compare it with
        ("mean_baseline", 0),
        ("leave_one_out", 0),
        ("optimal_baseline", 0),
    ],
)
def test_one_finite_value(name, expected):
    w = DIFFERENCES[name](f32(NAN, 5, INF), MU)
    np.testing.assert_array_equal(w, [0, expected, 0])
    np.testing.assert_array_equal(DIFFERENCES[name](f32(5), MU), [expected])


@ALL_DIFFERENCES
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_no_finite_value(name, bad):
    w = DIFFERENCES[name](f32(bad, bad, bad), MU)
    np.testing.assert_array_equal(w, [0, 0, 0])


def test_squared_norms_of_zero():
    """No mass, no baseline: b = 0 up to the anchor, and no division by zero."""
    w = weights.optimal_baseline(f32(4, 4), f32(0, 0), MU)
    np.testing.assert_array_equal(w, [0, 0])


def test_record_leaves_bad_values_out():
    # finite 3, 5, 7: m = 5; y - m = -2, ., 0, 2 with sides + - + -
    # S = [-2, 0 - 2]/0.5 = [-4, -4]; T = [1, 1 - 1]/0.5 = [2, 0]
    r = weights.record(f32([3, NAN], [5, 7]), f32(1, -1), MU)
    np.testing.assert_array_equal(r.weights, [[-4, -4], [2, 0]])
    assert (float(r.anchor + r.mean), int(r.num_finite)) == (5.0, 3)
    # The anchor is the first finite value, in the order of the rows.
    r = weights.record(f32([NAN, INF], [5, 7]), f32(1, -1), MU)
    assert (float(r.anchor), float(r.mean), int(r.num_finite)) == (5.0, 1.0, 2)
    # S = (-1 - 1)/0.5, T = 0 for the second direction, nothing for the first
    np.testing.assert_array_equal(r.weights, [[0, -4], [0, 0]])


def test_record_of_one_finite_value():
    """S = 0 and T = 1/mu: it still counts in the baseline of the history."""
    r = weights.record(f32([NAN], [6]), f32(1), MU)
    np.testing.assert_array_equal(r.weights, [[0, 0], [0, 2]])
    assert (float(r.anchor), float(r.mean), int(r.num_finite)) == (6.0, 0.0, 1)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_record_of_no_finite_value_is_empty(bad):
    r = weights.record(f32([bad], [bad]), f32(1), MU)
    for part in r:
        np.testing.assert_array_equal(part, jnp.zeros_like(part))


def test_an_empty_history_gives_nothing():
    for leave_one_out in (False, True):
        w = weights.history(
            f32(0, 0), f32(0, 0), jnp.array([0, 0]), leave_one_out=leave_one_out
        )
        np.testing.assert_array_equal(w, np.zeros((2, 2)))


# -- constant losses and offsets -------------------------------------------------------


@ALL_DIFFERENCES
@pytest.mark.parametrize("constant", [0.0, 2.0, 1e6, 0.1])
def test_a_constant_loss_gives_exactly_zero(name, constant):
    """No division by a spread, and no mean of equal values that is off by rounding."""
    y = jnp.full(7, constant, jnp.float32)
    if name == "forward":
        w = weights.forward(y, y[0], MU)
    elif name == "central":
        w = weights.central(y, y, MU)
    else:
        w = DIFFERENCES[name](y, MU)
    np.testing.assert_array_equal(w, np.zeros(7))


def test_a_constant_loss_leaves_a_record_and_a_history_of_zeros():
    r = weights.record(jnp.full((3, 2), 0.1), f32(1, -1), MU)
    np.testing.assert_array_equal(r.weights, np.zeros((2, 3)))
    assert float(r.mean) == 0
    w = weights.history(
        f32(0.1, 0.1), f32(0, 0), jnp.array([3, 5]), leave_one_out=False
    )
    np.testing.assert_array_equal(w[:, 1], [0, 0])


# Steps of 1/16 up to 8: exact in float32 next to 1e6, where the spacing is 1/16.
WIGGLE = (np.arange(1000) * 37 % 128) / 16


@pytest.mark.parametrize("name", ["mean_baseline", "leave_one_out", "optimal_baseline"])
def test_an_offset_costs_no_digits(name):
    """The mean is taken of differences: float32 values 1e6 + z, K = 1000.

    A mean of the values themselves would be off by the spacing of 1e6, 1/16.
    """
    z, mu = WIGGLE, 0.01
    mass = np.arange(1.0, 1001.0) if name == "optimal_baseline" else np.ones(1000)
    expected = (z - np.sum(z * mass) / np.sum(mass)) / (1000 * mu)
    if name == "leave_one_out":
        expected = expected * 1000 / 999
    w = DIFFERENCES[name](jnp.asarray(1e6 + z, jnp.float32), mu)
    np.testing.assert_allclose(w, expected, atol=1e-6 * np.max(np.abs(expected)))


def test_an_offset_costs_no_digits_in_a_record():
    z = WIGGLE.reshape(500, 2)
    r = weights.record(jnp.asarray(1e6 + z, jnp.float32), f32(1, -1), 0.01)
    centred = z - z.mean()
    np.testing.assert_allclose(
        r.weights[0], (centred[:, 0] - centred[:, 1]) / 0.01, rtol=0, atol=1e-3
    )
    assert float(r.anchor) == 1e6 + z[0, 0]
    np.testing.assert_allclose(float(r.mean), z.mean() - z[0, 0], rtol=1e-6)


def test_an_offset_costs_no_digits_in_a_history():
    """Levels 1e6 + 1/16 .. differ by less than their float32 mean could tell."""
    offsets = np.array([0.0, 1 / 16, 5 / 16, 3 / 16, 1 / 8])
    means = np.array([0.011, -0.02, 0.003, 0.0007, 0.04])
    counts = np.array([7, 3, 9, 0, 5])
    w = weights.history(
        jnp.asarray(1e6 + offsets, jnp.float32),
        jnp.asarray(means, jnp.float32),
        jnp.asarray(counts),
        leave_one_out=False,
    )
    level, total = offsets + means, counts.sum()
    baseline = np.sum(counts * level) / total
    expected = np.where(counts > 0, level - baseline, 0) / total
    np.testing.assert_allclose(w[:, 1], expected, atol=1e-8)


# -- what the baselines are for --------------------------------------------------------


def test_optimal_baseline_minimises_the_variance_of_the_estimate():
    """Over b, of (y - b) u / mu on three directions that sum to zero.

    With sum u = 0 the mean of the estimates does not depend on b, so its variance is
    least where sum (y - b)^2 |u|^2 is: b = sum y |u|^2 / sum |u|^2.
    u = (2, 0), (-1, 1), (-1, -1): |u|^2 = 4, 2, 2; y = 1, 5, 9: b = (4 + 10 + 18)/8 = 4
    """
    u = np.array([[2.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
    y, mu = np.array([1.0, 5.0, 9.0]), 0.5
    w = weights.optimal_baseline(
        jnp.asarray(y, jnp.float32), jnp.asarray((u**2).sum(1), jnp.float32), mu
    )
    np.testing.assert_allclose(w, (y - 4) / (3 * mu), rtol=1e-6)

    def variance(b):
        samples = ((y - b) / mu)[:, None] * u
        return np.sum(samples.var(axis=0))

    grid = np.linspace(-5, 12, 1701)
    best = grid[np.argmin([variance(b) for b in grid])]
    assert abs(best - 4) < 1e-6
    # The library's estimates have just that variance, and not that of the mean, b = 5.
    ours = (3 * np.asarray(w, np.float64))[:, None] * u
    np.testing.assert_allclose(np.sum(ours.var(axis=0)), variance(4), rtol=1e-6)
    assert variance(4) < variance(5)


def test_leave_one_out_is_the_mean_of_the_others():
    """Against the definition in float64, one bad value included."""
    y = np.array([0.3, -1.2, NAN, 2.5, 0.9])
    finite = np.isfinite(y)
    expected = np.zeros(5)
    for k in np.flatnonzero(finite):
        others = [y[j] for j in np.flatnonzero(finite) if j != k]
        expected[k] = (y[k] - np.mean(others)) / (4 * 0.01)
    w = weights.leave_one_out(jnp.asarray(y, jnp.float32), 0.01)
    np.testing.assert_allclose(w, expected, rtol=1e-5)


# -- record and history ----------------------------------------------------------------


def history_by_definition(steps, leave_one_out):
    """g = mean over the finite pairs of (y - b) s u / mu, b the mean of the finite y.

    With leave_one_out, M/(M-1) times that.
    """
    pairs = [
        (values[k, p], sides[p] * u[k] / mu)
        for values, sides, mu, u in steps
        for k in range(values.shape[0])
        for p in range(values.shape[1])
        if np.isfinite(values[k, p])
    ]
    baseline = np.mean([y for y, _ in pairs])
    divisor = len(pairs) - 1 if leave_one_out else len(pairs)
    return sum((y - baseline) * score for y, score in pairs) / divisor


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("sides", [(1.0,), (1.0, -1.0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_history_is_the_mean_over_all_pairs(sides, offset, dtype, leave_one_out):
    """Against the definition: four steps, smoothings of their own, bad values."""
    rng = np.random.default_rng(5)
    num_directions, d = 6, 9
    bad = {1: [(0, 0), (3, 0)], 2: [(k, p) for k in range(6) for p in (0, 1)]}
    steps = []
    for n, mu in enumerate([0.05, 0.02, 0.1, 0.3]):
        # Multiples of 2^-10: exact in float32 next to 1e4.
        values = np.round(rng.normal(size=(num_directions, len(sides))) * 1024) / 1024
        for k, p in bad.get(n, []):
            values[k, p % len(sides)] = NAN
        u = rng.normal(size=(num_directions, d))
        steps.append((values + offset + n, np.array(sides), mu, u))

    with jax.enable_x64(dtype == np.float64):
        records = [
            weights.record(jnp.asarray(y, dtype), jnp.asarray(s, dtype), dtype(mu))
            for y, s, mu, _ in steps
        ]
        assert all(r.weights.dtype == dtype for r in records)
        assert [int(r.num_finite) for r in records] == [
            np.isfinite(y).sum() for y, *_ in steps
        ]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *records)
        # And an empty slot, as at the start of a run.
        pad = lambda x: jnp.concatenate([x, jnp.zeros_like(x[:1])])
        coefficients = weights.history(
            pad(stacked.anchor),
            pad(stacked.mean),
            pad(stacked.num_finite),
            leave_one_out=leave_one_out,
        )
        np.testing.assert_array_equal(coefficients[-1], [0, 0])
        estimate = sum(
            np.asarray(c, np.float64) @ np.asarray(r.weights, np.float64) @ u
            for c, r, (*_, u) in zip(coefficients, records, steps, strict=False)
        )
    expected = history_by_definition(steps, leave_one_out)
    rtol = 2e-6 if dtype == np.float32 else 1e-12
    tolerance = rtol * np.linalg.norm(expected) * (1 + offset / 1e4)
    np.testing.assert_allclose(estimate, expected, rtol=0, atol=tolerance)


# -- overflow and dtypes ---------------------------------------------------------------

BIG = 3e38  # the largest float32 is 3.4e38
HUGE_VALUES = [
    pytest.param((BIG, -BIG, 1.0, 0.0), id="both-signs"),
    pytest.param((0.0, BIG, BIG, BIG), id="sum-overflows"),
    pytest.param((BIG, BIG, BIG, BIG), id="equal"),
    pytest.param((-BIG, NAN, BIG, INF), id="with-bad-ones"),
    pytest.param((1.5e38, -1.5e38), id="pair"),
]


@pytest.mark.parametrize("mu", [1e-3, 0.25])
@pytest.mark.parametrize("values", HUGE_VALUES)
@ALL_DIFFERENCES
def test_weights_stay_finite(name, values, mu):
    w = DIFFERENCES[name](f32(*values), jnp.float32(mu))
    assert np.all(np.isfinite(w)), w


@pytest.mark.parametrize("values", HUGE_VALUES)
def test_central_weights_stay_finite(values):
    w = weights.central(f32(*values), f32(*values[::-1]), jnp.float32(1e-3))
    assert np.all(np.isfinite(w)), w


@pytest.mark.parametrize("values", HUGE_VALUES)
def test_records_stay_finite(values):
    """Nothing that overflows may enter a history, where it would stay for N steps."""
    r = weights.record(f32(*values)[:, None], f32(1), jnp.float32(1e-3))
    assert all(np.all(np.isfinite(part)) for part in r), r


@pytest.mark.parametrize("values", [(BIG, -BIG, 1.0), (BIG, BIG, BIG), (-BIG, 0, BIG)])
def test_histories_stay_finite(values):
    w = weights.history(
        f32(*values), f32(0, 1, -1), jnp.array([4, 1, 9]), leave_one_out=False
    )
    assert np.all(np.isfinite(w)), w


def test_a_smoothing_of_zero_gives_no_weights():
    """As a schedule may reach: 0/0 and 1/0 are masked."""
    for difference in DIFFERENCES.values():
        w = difference(f32(1, 2, 4), jnp.float32(0.0))
        np.testing.assert_array_equal(w, [0, 0, 0])


@ALL_DIFFERENCES
def test_dtypes_follow_the_values(name):
    """float32 in, float32 out; float64 too, to its own precision."""
    assert DIFFERENCES[name](f32(1, 2, 4), jnp.float32(MU)).dtype == jnp.float32
    with jax.enable_x64(True):
        y = jnp.array([1.0, 1.0 + 1e-12, 1.0 - 1e-12])
        reference = y[0]
        w = {
            **DIFFERENCES,
            "forward": lambda y, mu: weights.forward(y, reference, mu),
            "central": lambda y, mu: weights.central(y, jnp.ones_like(y), mu),
        }[name](y, 1.0)
        assert w.dtype == jnp.float64
        # y_1 - y_2 = 2e-12 whatever the baseline, over K = 3 (2 for leave-one-out,
        # half of it for central)
        gap = {"leave_one_out": 2e-12 / 2, "central": 1e-12 / 3}.get(name, 2e-12 / 3)
        np.testing.assert_allclose(float(w[1] - w[2]), gap, rtol=1e-3)


@ALL_DIFFERENCES
def test_under_jit(name):
    """The same numbers as eagerly, with a traced smoothing."""
    y = f32(0.3, -1.2, NAN, 2.5, 0.9)
    weigh = DIFFERENCES[name]
    np.testing.assert_allclose(
        jax.jit(weigh)(y, 0.01), weigh(y, 0.01), rtol=2e-6, atol=1e-5
    )
