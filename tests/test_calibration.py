"""Gains from the objective: by hand, in plain Python and in a program alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax.perturbations import rademacher, restrict


def test_gains_by_hand():
    """Of f = 3 x the slope is 3 along any sign; without noise c is the first step."""
    gains = zojax.calibrate_spall_gains(
        lambda x: 3 * x, jnp.zeros(()), 0.2, 100, key=0, num_directions=2, alpha=1.0
    )
    k = np.array([1, 2, 51])
    np.testing.assert_allclose(gains.smoothing(k - 1), 0.2 / k**0.101, rtol=1e-6)
    expected = 0.2 / 3 * 11 / (10 + k)
    np.testing.assert_allclose(gains.learning_rate(k - 1), expected, rtol=1e-5)


@pytest.mark.parametrize("d", [1, 50])
def test_the_first_step_is_as_long_as_wished(d):
    """On average over directions, coordinate by coordinate, of a rough f too."""
    start = np.linspace(1.0, 2.0, d, dtype=np.float32)
    f = lambda x: float(7 * np.abs(x).sum() + 0.01 * np.floor(10 * x[0]))
    gains = zojax.calibrate_spall_gains(f, start, 0.1, 50, key=1, num_directions=40)
    opt = zojax.spsa(*gains, key=2, num_directions=1)
    lengths = []
    for seed in range(40):
        state = opt.init(start)
        state = (state[0]._replace(key=jnp.array([0, seed], jnp.uint32)), *state[1:])
        values = jnp.array([f(x) for x in np.asarray(opt.ask(state, start))])
        updates, _ = opt.update(None, state, start, values=values)
        np.testing.assert_allclose(np.abs(updates), abs(updates[0]), rtol=1e-5)
        lengths.append(abs(float(updates[0])))
    error = np.std(lengths) / np.sqrt(40) * 2  # of both means
    assert abs(np.mean(lengths) - 0.1) < 5 * error + 1e-3


def test_noise():
    """The deviation of 1,000 values has an error of about sd / sqrt(2,000)."""
    f = lambda x, query_key: 1e3 + x + 0.3 * jax.random.normal(query_key)
    measure = jax.jit(
        lambda x: zojax.noise_deviation(f, x, key=3, num_repeats=1000),
    )
    sd = float(measure(jnp.ones(())))
    assert abs(sd - 0.3) < 5 * 0.3 / np.sqrt(2000)
    # c is the noise, within its bounds.
    find = lambda **kwargs: float(
        zojax.calibrate_spall_gains(
            f, jnp.ones(()), 0.01, 10, key=3, **kwargs
        ).smoothing(0)
    )
    own = float(zojax.noise_deviation(f, jnp.ones(()), key=3))
    np.testing.assert_allclose(find(), own, rtol=1e-6)
    np.testing.assert_allclose(find(max_c=0.1), 0.1, rtol=1e-6)
    np.testing.assert_allclose(find(c=0.05), 0.05, rtol=1e-6)


def test_calls_and_arrays_of_plain_python():
    """R + 2K calls, of numpy where params are; c that is given saves R."""
    seen = []

    def f(params):
        assert type(params["w"]) is np.ndarray
        params["w"][0] += 1.0  # its own copy
        seen.append(params["w"].copy())
        return params["w"].sum() if len(seen) % 3 else np.nan

    params = {"w": np.zeros(3), "frozen": np.arange(2)}
    sampler = restrict(rademacher(), {"w": True, "frozen": False})
    some = {"key": 0, "num_directions": 5, "num_repeats": 4, "sampler": sampler}
    gains = zojax.calibrate_spall_gains(f, params, 0.1, 10, **some)
    assert len(seen) == 4 + 2 * 5
    assert 0 < float(gains.learning_rate(0)) < np.inf
    zojax.calibrate_spall_gains(f, params, 0.1, 10, c=0.1, **some)
    assert len(seen) == 14 + 10
    assert not params["w"].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 5.0])
def test_flat_or_not_finite(bad):
    """An error where numbers are known, and gains that stand still in a program."""
    f, x = lambda x: bad + 0 * jnp.sum(x), jnp.ones(3)
    with pytest.raises(ValueError, match=r"value_fn must (change|be finite)"):
        zojax.calibrate_spall_gains(f, x, 0.1, 10, key=0)
    if bad != 5.0:
        with pytest.raises(ValueError, match="0 of 8 values at params"):
            zojax.noise_deviation(f, x, key=0)

    @jax.jit
    def first(x):
        gains = zojax.calibrate_spall_gains(f, x, 0.1, 10, key=0)
        return gains.learning_rate(0), gains.smoothing(0)

    np.testing.assert_allclose(first(x), (0.0, 0.1), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_step": 0.0}, "first_step must be a number > 0"),
        ({"num_steps": 0}, "num_steps must be an int >= 1"),
        ({"c": -1.0}, "c must be a number > 0"),
        ({"max_c": 0.0}, "max_c must be a number > 0"),
        ({"num_directions": 0}, "num_directions must be an int >= 1"),
        ({"num_repeats": 1}, "num_repeats must be an int >= 2"),
        ({"sampler": 3}, "sampler must be a zojax.Sampler"),
        ({"alpha": 0.0}, "alpha must be a number > 0"),
    ],
)
def test_out_of_range(change, message):
    given = {"first_step": 0.1, "num_steps": 10, "key": 0, **change}
    with pytest.raises(ValueError, match=message):
        zojax.calibrate_spall_gains(jnp.sum, jnp.ones(2), **given)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_in_programs_of_any_dtype(dtype):
    """Strict promotion, vmap over starts and first steps, gains as arrays."""
    with (
        jax.enable_x64(dtype == "float64"),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        f = lambda x: jnp.sum(x.astype(jnp.float32) ** 2)

        def run(x, first_step):
            gains = zojax.calibrate_spall_gains(f, x, first_step, 20, key=0)
            opt = zojax.spsa(*gains, key=0)
            return opt.update(None, opt.init(x), x, value_fn=f)[0]

        starts = jnp.array([[1.0, 2.0], [2.0, 4.0]], dtype)
        steps = jax.jit(jax.vmap(run))(starts, jnp.array([0.1, 0.2]))
        assert steps.dtype == starts.dtype
        assert bool(jnp.isfinite(steps).all())
        assert bool((jnp.abs(steps).sum(axis=1) > 0).all())
