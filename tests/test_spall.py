"""Spall's gains against numbers worked by hand, and steps that are refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax


def test_gains_by_hand():
    gains = zojax.spall_gains(0.16, 0.5, stability=10.0)
    for count in (0, 1, 99):
        k = count + 1
        found = gains.learning_rate(count), jax.jit(gains.smoothing)(count)
        expected = 0.16 / (10 + k) ** 0.602, 0.5 / k**0.101
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_spsa_takes_them_and_converges():
    """Noisy squares: the noise floor of constant gains is passed."""
    gains = zojax.spall_gains(0.3, 0.3, stability=20.0)

    def f(x, query_key):
        return jnp.sum((x - 1) ** 2) + 0.1 * jax.random.normal(query_key)

    def end(learning_rate, smoothing):
        opt = zojax.spsa(learning_rate, smoothing, key=1)
        x = jnp.zeros(4)

        def step(carry, _):
            x, state = carry
            updates, state = opt.update(None, state, x, value_fn=f)
            return (optax.apply_updates(x, updates), state), None

        (x, _), _ = jax.lax.scan(step, (x, opt.init(x)), None, length=1000)
        return float(jnp.sum((x - 1) ** 2))

    assert end(*gains) < 1e-2


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"a": 0.0}, "a"),
        ({"c": -1.0}, "c"),
        ({"stability": -1.0}, "stability"),
        ({"alpha": 0.0}, "alpha"),
        ({"gamma": np.nan}, "gamma"),
    ],
)
def test_gains_out_of_range(kwargs, name):
    with pytest.raises(ValueError, match=f"{name} must be a number"):
        zojax.spall_gains(**{"a": 0.1, "c": 0.1, **kwargs})


def descend(opt, f, x, steps, **kwargs):
    """The params of each step, and the last state."""
    state, found = opt.init(x), []
    update = jax.jit(lambda s, x: opt.update(x, s, x, value_fn=f, **kwargs))
    for _ in range(steps):
        updates, state = update(state, x)
        x = optax.apply_updates(x, updates)
        found.append(np.asarray(x))
    return found, state


def test_steps_uphill_are_refused_by_hand():
    """x doubles at each step: 1 -> 2 is kept (nothing is known), 2 -> 4 is not."""
    opt = optax.chain(optax.sgd(-1.0), zojax.block_steps(0.0))
    found, state = descend(opt, lambda x: x**2, jnp.ones(()), 3)
    assert found == [2.0, 2.0, 2.0]
    assert int(state[1].num_blocked) == 2
    assert float(state[1].value) == 4.0


@pytest.mark.parametrize(("tolerance", "kept"), [(11.9, 2.0), (12.1, 4.0)])
def test_tolerance(tolerance, kept):
    """f(4) - f(2) is 12."""
    opt = optax.chain(optax.sgd(-1.0), zojax.block_steps(tolerance))
    found, _ = descend(opt, lambda x: x**2, jnp.ones(()), 2)
    assert found[1] == kept


def test_no_step_to_where_f_is_nan():
    f = lambda x: jnp.where(x > 3, jnp.nan, -x)
    opt = optax.chain(optax.sgd(-1.0), zojax.block_steps(1.0))
    found, state = descend(opt, f, jnp.ones(()), 4)
    assert found[-1] == 2.0
    assert int(state[1].num_blocked) == 3


def test_it_survives_steps_that_diverge():
    """Steps of 1/2 raise f = |x - 1|^2 where |v|^2 > 2; alone they explode."""
    f = lambda x: jnp.sum((x - 1) ** 2)
    x, sampler = jnp.zeros(4), zojax.perturbations.gaussian()
    spsa = zojax.spsa(0.5, 0.1, key=0, sampler=sampler)
    alone, _ = descend(spsa, f, x, 100)
    blocked, state = descend(optax.chain(spsa, zojax.block_steps(0.0)), f, x, 100)
    assert not f(alone[-1]) < 100
    values = [float(f(x)) for x in blocked]
    assert all(b <= a + 1e-5 for a, b in itertools.pairwise(values))
    assert values[-1] < values[0]
    assert 0 < int(state[1].num_blocked) < 100


def test_keys_extra_args_and_aux():
    def f(x, batch, query_key):
        return jnp.sum((x - batch) ** 2) + jax.random.uniform(query_key), {"x": x}

    opt = optax.chain(
        zojax.two_point(0.1, 4, key=0, has_aux=True),
        optax.sgd(0.1),
        zojax.block_steps(1.0, key=3, has_aux=True),
    )
    found, state = descend(opt, f, jnp.zeros(2), 20, batch=jnp.ones(2), value=None)
    assert np.isfinite(found[-1]).all()
    assert np.isfinite(state[2].value)


def test_what_it_needs():
    opt = zojax.block_steps(0.1)
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="needs value_fn="):
        opt.update(x, opt.init(x), x)
    with pytest.raises(ValueError, match="tolerance must be a number >= 0"):
        zojax.block_steps(-1.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_what_every_transformation_must_survive(dtype):
    """Pytrees, dtypes, strict promotion, vmap and scan; the state keeps its shapes."""

    def f(params):
        wide = params["w"].astype(jnp.float32)
        return jnp.sum((wide - 1) ** 2) + params["b"].astype(jnp.float32) ** 2

    with (
        jax.enable_x64(dtype == "float64"),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        params = {"w": jnp.zeros((2, 3), dtype), "b": jnp.ones((), dtype)}
        opt = zojax.block_steps(0.0)
        start = opt.init(params)
        uphill = jax.tree.map(jnp.ones_like, params)

        def step(state, sign):
            moved = jax.tree.map(lambda u: sign.astype(u.dtype) * u, uphill)
            updates, state = opt.update(moved, state, params, value_fn=f)
            return state, updates

        # f(params) is 7: the first step leads to 4, the second to 24 + 0.
        signs = jnp.array([1.0, -1.0], jnp.float32)
        state, found = jax.jit(lambda s: jax.lax.scan(step, s, signs))(start)
        shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        assert shapes(state) == shapes(start)
        assert shapes(found) == jax.tree.map(lambda p: ((2, *p.shape), p.dtype), params)
        np.testing.assert_array_equal(found["b"], [1, 0])
        assert int(state.num_blocked) == 1
        both = jax.vmap(step, (None, 0))(state, signs)[1]
        np.testing.assert_array_equal(both["b"], [1, 0])
