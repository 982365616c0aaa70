"""check_smoothing: what rounding leaves of a perturbation, and of f's differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax.perturbations import orthogonal, rademacher, restrict, simplex

RADEMACHER = rademacher()


def as64(x):
    return np.asarray(x, np.float64)


# -- of params -------------------------------------------------------------------------

NEAR_ONE = 1 + 0.1 * jax.random.normal(jax.random.key(2), (4096,))


def share64(params, v, mu):
    """<round(theta + mu v) - theta, v> / (mu |v|^2) with rounding by ml_dtypes."""
    theta = np.asarray(params)
    start = theta.astype(np.float64)
    moved = (start + mu * v).astype(np.float32).astype(theta.dtype)
    return np.sum((moved.astype(np.float64) - start) * v) / (mu * np.sum(v**2))


@pytest.mark.parametrize(
    ("dtype", "useful"),
    [(jnp.bfloat16, 1e-2), (jnp.float16, 1e-3), (jnp.float32, 1e-6)],
)
def test_check_smoothing(dtype, useful):
    """Trap 12: the smallest useful smoothing by dtype, near weights of 1.

    At the documented one nothing is lost and nothing is warned of (a warning is an
    error here); a tenth of it is mostly rounded away.
    """
    params = NEAR_ONE.astype(dtype)
    v = as64(RADEMACHER(jax.random.key(0), 0, 1, params))
    share = zojax.check_smoothing(params, useful, key=0).kept
    assert abs(share - 1) < 0.1
    np.testing.assert_allclose(share, share64(params, v, useful), rtol=1e-3)
    small = useful / 100
    with pytest.warns(UserWarning, match="too small here"):
        share = zojax.check_smoothing(params, small, key=0).kept
    assert share < 0.5
    np.testing.assert_allclose(share, share64(params, v, small), rtol=1e-3, atol=1e-6)


def test_check_smoothing_in_bfloat16():
    """mu = 1e-3 is below half the spacing of bfloat16 from 0.5 on: it is ignored."""
    params = NEAR_ONE.astype(jnp.bfloat16)
    with pytest.warns(UserWarning, match=r"smoothing=0\.001 is too small.*keeps \d+%"):
        share = zojax.check_smoothing(params, 1e-3, key=0).kept
    assert share < 0.2
    assert abs(zojax.check_smoothing(params, 1e-2, key=0).kept - 1) < 0.05
    with pytest.warns(UserWarning, match="keeps 0%"):
        share = zojax.check_smoothing(jnp.ones(64, jnp.bfloat16), 1e-3, key=0).kept
    assert share == 0


def test_check_smoothing_counts_trainable_leaves():
    """Frozen leaves neither warn nor dilute; mixed dtypes are weighed by entries."""
    params = {
        "narrow": jnp.ones(64, jnp.bfloat16),
        "wide": jnp.ones(192),
        "ids": jnp.arange(3),
    }
    frozen = {"narrow": False, "wide": True, "ids": False}
    check = lambda mask, **options: (
        zojax.check_smoothing(
            params, 1e-3, key=0, sampler=restrict(RADEMACHER, mask), **options
        ).kept
    )
    np.testing.assert_allclose(check(frozen), 1, rtol=1e-3)
    assert check(dict.fromkeys(params, False)) == 1.0  # nothing is perturbed
    # 192 of 256 entries move: a share of 3/4, above or below a minimum of one's own
    both = {**frozen, "narrow": True}
    np.testing.assert_allclose(check(both, minimum=0.7), 0.75, rtol=1e-3)
    with pytest.warns(UserWarning, match="keeps 75%"):
        check(both)


def test_check_smoothing_takes_any_key():
    params = NEAR_ONE.astype(jnp.float16)
    shares = {
        zojax.check_smoothing(params, 1e-2, key=key)
        for key in (3, jax.random.key(3), jax.random.PRNGKey(3))
    }
    assert len(shares) == 1


# -- of f ------------------------------------------------------------------------------

X = jnp.arange(5.0)


def test_differences_that_round_to_zero():
    """f = 1e4 + 1e-3 |x - 1|^2 at mu = 1e-3: every difference is 0 in float32."""
    f = lambda x: 1e4 + 1e-3 * jnp.sum((x - 1) ** 2)
    with pytest.warns(UserWarning, match="rounding of f may be 100%"):
        check = zojax.check_smoothing(X, 1e-3, key=0, value_fn=f)
    assert check.kept > 0.99
    assert check.lost == 1
    opt = zojax.two_point(1e-3, 4, key=0)
    updates, state = opt.update(None, opt.init(X), X, value_fn=f)
    assert not updates.any()
    assert int(state.log.num_flat) == 1
    without = lambda x: 1e-3 * jnp.sum((x - 1) ** 2)
    assert zojax.check_smoothing(X, 1e-3, key=0, value_fn=without).lost < 0.1


@pytest.mark.parametrize("mu", [0.3, 3.0])
def test_lost_by_hand(mu):
    """A step of float32 at 1e4 is 2^-10; half a difference is mu g v, v of signs."""
    g = 1e-2
    f = lambda x: 1e4 + g * x[0]
    check = zojax.check_smoothing(X, mu, key=0, value_fn=f, minimum=0.0)
    # Differences are whole steps: 6 at mu = 0.3 (5.9 steps of 2^-10), 31 at mu = 3.
    steps = 1e4 * 2.0**-23 / np.sqrt(24)
    half = round(2 * mu * g / 2.0**-10) * 2.0**-10 / 2
    np.testing.assert_allclose(check.lost, steps / half, rtol=0.35)
    np.testing.assert_allclose(check.curvature, 0, atol=0.3)


def test_a_coarse_result_is_seen():
    """Values of bfloat16 have steps of 2^-7: near 2 a step of 0.01 is lost."""
    f = lambda x: (2 + 0.1 * x[0]).astype(jnp.bfloat16)
    with pytest.warns(UserWarning, match="rounding of f"):
        assert zojax.check_smoothing(X, 1e-2, key=0, value_fn=f).lost > 0.5
    exact = lambda x: f(x).astype(jnp.float32)  # what it lost inside is not seen
    assert zojax.check_smoothing(X, 0.5, key=0, value_fn=exact, minimum=0.5).lost < 0.5


def test_curvature_by_hand():
    """On a x^2 + b x: even part a mu^2, odd part (2 a x + b) mu, for a sign."""
    a, b, x, mu = 3.0, -1.0, 0.5, 0.1
    f = lambda x: a * x**2 + b * x
    with jax.enable_x64(True):
        check = zojax.check_smoothing(jnp.asarray(x), mu, key=0, value_fn=f)
    even, odd = a * mu**2, (2 * a * x + b) * mu
    np.testing.assert_allclose(check.curvature, even / np.hypot(even, odd), rtol=1e-9)
    assert check.lost < 1e-12
    with jax.enable_x64(True):
        at_minimum = zojax.check_smoothing(
            jnp.zeros(()), 0.1, key=0, value_fn=lambda x: x**2, minimum=0.0
        )
    np.testing.assert_allclose(at_minimum.curvature, 1)


def test_a_plain_python_objective_is_called_as_often_as_said():
    calls = []

    def f(x):
        calls.append(np.asarray(x))
        return float(np.sum(np.square(x)))

    zojax.check_smoothing(X, 0.1, key=0, value_fn=f, num_directions=3)
    assert len(calls) == 2 * 3 + 1
    np.testing.assert_array_equal(calls[0], X)


def test_other_samplers_and_no_difference():
    f = lambda x: jnp.sum(x**2)
    for sampler in (simplex(), orthogonal()):
        check = zojax.check_smoothing(X, 0.1, key=0, sampler=sampler, value_fn=f)
        assert check.lost < 1e-3
    assert zojax.check_smoothing(X, 0.1, key=0) == (
        pytest.approx(1, abs=1e-5),
        None,
        None,
    )


def test_arguments_are_checked():
    for arguments, words in (
        ({"smoothing": 0.0}, "smoothing must be"),
        ({"smoothing": -1e-3}, "smoothing must be"),
        ({"smoothing": np.inf}, "smoothing must be"),
        ({"smoothing": np.nan}, "smoothing must be"),
        ({"params": None}, "params=None"),
        ({"value_fn": 3.0}, "value_fn must be callable"),
        ({"value_fn": lambda x: x}, "real scalar"),
        ({"value_fn": lambda x: jnp.nan}, "value_fn must be finite near params"),
        ({"num_directions": 0, "value_fn": jnp.sum}, "num_directions must be"),
        ({"num_directions": 3, "sampler": simplex()}, "a power of two"),
        ({"minimum": "x"}, "minimum must be"),
        ({"key": None}, "key must be"),
    ):
        given = {"params": X, "smoothing": 0.1, "key": 0, **arguments}
        with pytest.raises(ValueError, match=words):
            zojax.check_smoothing(**given)
