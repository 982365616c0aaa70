"""Shapings against scipy and numpy in float64, and what they promise an estimator."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import zojax
from zojax.shaping import centred_ranks, per_group, z_score

VALUES = np.array([[3.0, -1.5], [np.nan, 3.0], [1e4, 2.0], [3.0, 0.25]])
KNOWN = np.isfinite(VALUES)


def expected_ranks(values):
    known = values[np.isfinite(values)]
    out = np.full(values.shape, np.nan)
    ranks = scipy.stats.rankdata(known) - 1
    out[np.isfinite(values)] = ranks / (len(known) - 1) - 0.5
    return out


def test_centred_ranks_are_those_of_scipy():
    found = jax.jit(centred_ranks)(jnp.asarray(VALUES, jnp.float32))
    np.testing.assert_allclose(found, expected_ranks(VALUES), atol=1e-6)
    assert np.nansum(found) == pytest.approx(0, abs=1e-6)


def test_z_scores_are_those_of_numpy():
    found = jax.jit(z_score)(jnp.asarray(VALUES, jnp.float32))
    scores = (VALUES - VALUES[KNOWN].mean()) / VALUES[KNOWN].std()
    np.testing.assert_allclose(found, scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shaping", [z_score, centred_ranks])
@pytest.mark.parametrize("values", [[2.0, 2.0, 2.0], [np.nan, 5.0, np.nan]])
def test_equal_values_are_all_zero(shaping, values):
    values = np.array(values)[:, None]
    found = shaping(jnp.asarray(values))
    np.testing.assert_array_equal(found, np.where(np.isnan(values), np.nan, 0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shaping", [z_score, centred_ranks])
def test_scale_and_offset_do_not_matter(shaping, dtype):
    with jax.enable_x64(dtype == "float64"):
        y = jax.random.normal(jax.random.key(0), (16, 2), dtype)
        found, moved = shaping(y), shaping(1e3 * y - 50)
        assert found.dtype == dtype
    np.testing.assert_allclose(found, moved, rtol=0, atol=1e-4)


def test_groups_are_shaped_alone():
    values = jnp.asarray(np.concatenate([VALUES[:2], 7 - 100 * VALUES[2:]]))
    found = per_group(centred_ranks, 2)(values)
    expected = np.concatenate(
        [expected_ranks(np.asarray(v)) for v in (values[:2], values[2:])]
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match="divisor of the 4 directions, got 3"):
        per_group(z_score, 3)(values)
    with pytest.raises(ValueError, match="num_groups must be an int >= 1"):
        per_group(z_score, 0)
    with pytest.raises(ValueError, match="shaping must be callable"):
        per_group(3, 1)


@pytest.mark.parametrize("difference", ["central", "leave_one_out", "mean"])
@pytest.mark.parametrize("shaping", [z_score, centred_ranks])
def test_an_estimator_of_shaped_values_knows_no_scale(shaping, difference):
    """Whatever monotone (ranks) or affine (z-scores) thing is done to f: same steps."""
    opt = zojax.two_point(0.1, 8, key=0, difference=difference, shaping=shaping)
    x = jnp.arange(3.0)
    other = jnp.exp if shaping is centred_ranks else (lambda y: 40 * y - 3)
    squares = lambda x: jnp.sum((x - 1) ** 2) / 3
    found = [
        jax.jit(lambda s, f=f: opt.update(None, s, x, value_fn=f))(opt.init(x))[0]
        for f in (squares, lambda x: other(squares(x)))
    ]
    np.testing.assert_allclose(*found, rtol=2e-3, atol=2e-3)
    assert float(found[0] @ (x - 1)) > 0


def test_normalised_steps_are_those_of_fzoo():
    """Against the paper's own formulas (2506.09034), in numpy from the rows asked."""
    number, mu, x = 5, 0.1, np.linspace(-1, 1, 4)
    f = lambda x: float(np.sum(x**3) + np.prod(x))
    signs = zojax.perturbations.rademacher()

    def found(difference, shaping=None):
        options = {"difference": difference, "sampler": signs, "shaping": shaping}
        opt = zojax.two_point(mu, number, key=7, **options)
        state = opt.init(jnp.asarray(x))
        points = np.asarray(opt.ask(state, jnp.asarray(x)))
        values = jnp.asarray([f(point) for point in points])
        g, state = opt.update(None, state, jnp.asarray(x), values=values)
        return points, np.asarray(values), np.asarray(g), state

    with jax.enable_x64(True):
        (_, *points), (base, *values), forward, state = found("forward")
        of_mean = found("mean", z_score)[2]
        alone = found("leave_one_out", z_score)[2]
    values, rows = np.array(values), (np.array(points) - x) / mu
    np.testing.assert_allclose(np.abs(rows), 1)
    sigma = np.sqrt(np.sum((values - values.mean()) ** 2) / (number - 1))
    paper = lambda baseline: (values - baseline) @ rows / (number * mu) / sigma
    shrink = np.sqrt((number - 1) / number)
    np.testing.assert_allclose(shrink * of_mean, paper(values.mean()), rtol=1e-9)
    own = shrink * forward / float(state.log.query_spread)
    np.testing.assert_allclose(own, paper(base), rtol=1e-9)
    np.testing.assert_allclose(alone, of_mean * number / (number - 1), rtol=1e-9)


def test_ranks_climb_where_a_few_rewards_are_huge():
    """An outlier in one query of a hundred: z-scores and ranks, not raw values."""

    def reward(x, query_key):
        rare = jax.random.bernoulli(query_key, 0.02)
        return -jnp.sum(jnp.abs(x - 1)) + jnp.where(rare, 1e4, 0.0)

    def end(shaping):
        estimator = zojax.two_point(
            0.1, 30, key=0, difference="leave_one_out", shaping=shaping
        )
        opt = optax.chain(estimator, optax.sgd(5e-3))
        x = jnp.zeros(5)

        def step(carry, _):
            x, state = carry
            cost = lambda x, query_key: -reward(x, query_key)
            updates, state = opt.update(None, state, x, value_fn=cost)
            return (optax.apply_updates(x, updates), state), None

        (x, _), _ = jax.lax.scan(step, (x, opt.init(x)), None, length=300)
        return float(jnp.sum(jnp.abs(x - 1)))

    assert end(centred_ranks) < 1.0
    assert end(lambda y: y / 1e4) > 2.0
