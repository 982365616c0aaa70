"""The average of the last iterates and the pull towards the first, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax


@pytest.mark.parametrize("since", [0, 2])
def test_average_by_hand(since):
    opt = zojax.average_iterates(since)
    x, state, seen = jnp.zeros(2), opt.init(jnp.zeros(2)), []
    for n in range(6):
        step = jnp.array([1.0, (-2.0) ** n])
        updates, state = opt.update(step, state, x)
        np.testing.assert_array_equal(updates, step)
        x = optax.apply_updates(x, updates)
        seen.append(np.asarray(x))
        expected = np.mean(seen[min(since, n) :], axis=0)
        np.testing.assert_allclose(state.average, expected, rtol=1e-6)
    assert int(state.count) == 6


def test_the_average_is_nearer_than_the_end():
    """Noise that constant gains wander about in averages out."""

    def f(x, query_key):
        # Both sides share a key: noise that a difference feels.
        return jnp.sum((x - 1) ** 2) + 0.2 * jnp.sum(
            x * jax.random.normal(query_key, x.shape)
        )

    def distances(seed):
        spsa = zojax.spsa(0.03, 0.1, key=seed)
        opt = optax.chain(spsa, zojax.average_iterates(300))
        x = jnp.zeros(4)

        def step(carry, _):
            x, state = carry
            updates, state = opt.update(None, state, x, value_fn=f)
            return (optax.apply_updates(x, updates), state), None

        (x, state), _ = jax.lax.scan(step, (x, opt.init(x)), None, length=600)
        mean = optax.tree.get(state, "average")
        return jnp.sum((x - 1) ** 2), jnp.sum((mean - 1) ** 2)

    end, mean = jax.jit(jax.vmap(distances))(jnp.arange(8))
    assert mean.mean() < 0.3 * end.mean()


def test_decay_is_the_gradient_of_a_spring():
    """It adds rate (theta - theta_0), a schedule's too, and nothing at the start."""
    opt = zojax.decay_towards_start(lambda count: 0.5 + count)
    start = {"w": jnp.array([1.0, 2.0])}
    state = opt.init(start)
    zero = jax.tree.map(jnp.zeros_like, start)
    updates, state = opt.update(zero, state, start)
    assert not updates["w"].any()
    far = {"w": jnp.array([2.0, 0.0])}
    updates, state = opt.update({"w": jnp.ones(2)}, state, far)
    np.testing.assert_allclose(updates["w"], [1 + 1.5, 1 - 3.0])
    np.testing.assert_array_equal(state.start["w"], start["w"])
    # With a step of descent, towards the start.
    back = optax.chain(zojax.decay_towards_start(1.0), optax.sgd(0.5))
    updates, _ = back.update(zero, back.init(start), far)
    np.testing.assert_allclose(updates["w"], [-0.5, 1.0])


def test_frozen_and_integer_leaves_are_left_alone():
    params = {"w": jnp.ones(2), "steps": jnp.asarray(7, jnp.int32)}
    opt = optax.chain(
        zojax.decay_towards_start(0.5), optax.sgd(0.1), zojax.average_iterates()
    )
    updates = {"w": jnp.ones(2), "steps": jnp.zeros((), jnp.int32)}
    updates, state = zojax.decay_towards_start(0.5).update(
        updates, zojax.decay_towards_start(0.5).init(params), params
    )
    assert updates["steps"].dtype == jnp.int32
    assert int(updates["steps"]) == 0
    average = zojax.average_iterates()
    _, state = average.update(updates, average.init(params), params)
    assert int(state.average["steps"]) == 7
    assert opt.init(params)[2].average["steps"].dtype == jnp.int32


@pytest.mark.parametrize("make", [zojax.average_iterates, zojax.decay_towards_start])
def test_what_they_need(make):
    with pytest.raises(ValueError, match=r"must be (an int|a number) >= 0"):
        make(-1)
    opt = make(1)
    with pytest.raises(ValueError, match="params=None"):
        opt.update(jnp.ones(2), opt.init(jnp.ones(2)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_what_every_transformation_must_survive(dtype):
    """Pytrees, dtypes, strict promotion, vmap, scan and donation; shapes stay."""
    with (
        jax.enable_x64(dtype == "float64"),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        params = {"w": jnp.zeros((2, 3), dtype), "b": (jnp.ones((), dtype), None)}
        opt = optax.chain(
            zojax.decay_towards_start(0.1), optax.sgd(0.5), zojax.average_iterates(1)
        )
        start = opt.init(params)
        ones = jax.tree.map(jnp.ones_like, params)

        def step(carry, _):
            params, state = carry
            updates, state = opt.update(ones, state, params)
            return (optax.apply_updates(params, updates), state), None

        run = lambda carry: jax.lax.scan(step, carry, None, length=4)[0]
        end, state = jax.jit(run)((params, start))
        shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        assert shapes(end) == shapes(params)
        assert shapes(state) == shapes(start)
        average = optax.tree.get(state, "average")
        wide = jnp.float64 if dtype == "float64" else jnp.float32
        assert average["w"].dtype == wide
        # x <- x - (1 + x / 10) / 2 from 0: -0.5, -0.975, ...
        path = [0.0]
        for _ in range(4):
            path.append(path[-1] - 0.5 * (1 + path[-1] / 10))
        np.testing.assert_allclose(average["w"], np.mean(path[2:]), rtol=2e-2)
        both = jax.vmap(lambda p: run((p, opt.init(p)))[0])(
            jax.tree.map(lambda p: jnp.stack([p, p]), params)
        )
        np.testing.assert_allclose(both["w"][1], end["w"], rtol=2e-2)
        # A state of its own: it may be donated while params live on.
        jax.jit(run, donate_argnums=0)((jax.tree.map(jnp.copy, params), start))
        assert not params["w"].any()
