"""R-AdaZO by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax


def run(opt, gradients, params):
    """The updates of several steps, and the last state."""
    state, seen, update = opt.init(params), [], jax.jit(opt.update)
    for g in gradients:
        updates, state = update(g, state)
        seen.append(updates)
    return seen, state


def test_three_steps_by_hand():
    """b1 = 1/2, b2 = 3/4, gradients 4, 2, -6.

    m: 2, 2, -2; s: 1/4 of 4, 3/4 + 1, 3/4 of 7/4 + 1 = 1, 1.75, 2.3125.
    """
    opt = zojax.scale_by_radazo(b1=0.5, b2=0.75)
    gradients = [jnp.array([4.0, -4.0]), jnp.array([2.0, -2.0]), jnp.array([-6.0, 6.0])]
    seen, state = run(opt, gradients, jnp.zeros(2))
    m, s = np.array([2.0, 2.0, -2.0]), np.array([1.0, 1.75, 2.3125])
    expected = (m / np.sqrt(s))[:, None] * np.array([1.0, -1.0])
    np.testing.assert_allclose(np.stack(seen), expected, rtol=1e-6)
    assert state.m.tolist() == [-2.0, 2.0]
    assert state.s.tolist() == [2.3125, 2.3125]


def test_the_second_moment_is_that_of_the_first_moment_not_of_the_gradient():
    """Gradients +4, -4, +4, ... : m alternates, so that s stays far below g^2 = 16.

    b1 = 1/2: m = 2, -1, 1.5; b2 = 1/2: s = 2, 1.5, 1.875.
    """
    opt = zojax.scale_by_radazo(b1=0.5, b2=0.5)
    seen, state = run(opt, [jnp.array([g]) for g in (4.0, -4.0, 4.0)], jnp.zeros(1))
    expected = np.array([2.0, -1.0, 1.5]) / np.sqrt([2.0, 1.5, 1.875])
    np.testing.assert_allclose(np.concatenate(seen), expected, rtol=1e-6)
    np.testing.assert_allclose(state.s, [1.875], rtol=1e-6)


def test_eps_is_added_to_the_root():
    """m = 2, sqrt(s) = 1: u = 2 / (1 + 3)."""
    opt = zojax.scale_by_radazo(b1=0.5, b2=0.75, eps=3.0)
    seen, _ = run(opt, [jnp.array([4.0])], jnp.zeros(1))
    assert seen[0].tolist() == [0.5]


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_first_step_is_ten_signs_at_the_defaults(size):
    """No bias correction: 1 / sqrt(1 - 0.99) = 10, whatever the gradient's size."""
    g = size * jnp.array([1.0, -3.0, 0.5])
    seen, _ = run(zojax.scale_by_radazo(), [g], jnp.zeros(3))
    np.testing.assert_allclose(seen[0], [10.0, -10.0, 10.0], rtol=1e-2)
    adam = optax.scale_by_adam()
    corrected = adam.update(g, adam.init(g))[0]
    np.testing.assert_allclose(corrected, [1.0, -1.0, 1.0], rtol=1e-2)


def test_zero_gradients_give_zero():
    seen, state = run(zojax.scale_by_radazo(), [jnp.zeros(3)] * 2, jnp.zeros(3))
    assert not np.any(np.stack(seen))
    assert not state.s.any()


def test_bfloat16_gradients_keep_float32_moments():
    """The moments are those of float32 arithmetic on the gradients as they come."""
    opt = zojax.scale_by_radazo(0.9, 0.99)
    values = [1.0, -0.53125, 0.2109375]  # exact in bfloat16
    gradients = [jnp.array([g], jnp.bfloat16) for g in values]
    seen, state = run(opt, gradients, jnp.zeros(1, jnp.bfloat16))
    assert state.m.dtype == state.s.dtype == jnp.float32
    m, s = 0.0, 0.0
    for g, u in zip(values, seen, strict=True):
        m = 0.9 * m + 0.1 * g
        s = 0.99 * s + 0.01 * m**2
        assert u.dtype == jnp.bfloat16
        np.testing.assert_allclose(u.astype(float), m / np.sqrt(s), rtol=2**-8)
    # Rounding (1 - b1) g to bfloat16 would show as 1e-3.
    np.testing.assert_allclose(state.m, m, rtol=1e-5)
    np.testing.assert_allclose(state.s, s, rtol=1e-5)


def test_radazo_descends_along_minus_lr_u():
    """The chain scales by -lr; on a quadratic it converges to the minimum."""
    seen, _ = run(zojax.radazo(0.5, 0.5, 0.75), [jnp.array([4.0])], jnp.zeros(1))
    np.testing.assert_allclose(seen[0], [-1.0], rtol=1e-6)  # -0.5 * 2 / 1
    opt = zojax.radazo(optax.cosine_decay_schedule(1e-2, 400))
    f = lambda p: jnp.sum((p["a"] - 1.0) ** 2) + 10 * jnp.sum((p["b"] + 2.0) ** 2)

    def step(carry, _):
        p, state = carry
        updates, state = opt.update(jax.grad(f)(p), state)
        return (optax.apply_updates(p, updates), state), None

    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    carry = (params, opt.init(params))
    (p, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=400))(carry)
    np.testing.assert_allclose(p["a"], 1.0, atol=1e-2)
    np.testing.assert_allclose(p["b"], -2.0, atol=1e-2)


def test_learning_rate_schedule_takes_the_step_count():
    """Updates by hand (2, 2/sqrt(1.75)) times minus the rate of each step."""
    opt = zojax.radazo(lambda count: 0.1 * (count + 1), 0.5, 0.75)
    seen, _ = run(opt, [jnp.array([4.0]), jnp.array([2.0])], jnp.zeros(1))
    expected = [-0.1 * 2, -0.2 * 2 / np.sqrt(1.75)]
    np.testing.assert_allclose(np.concatenate(seen), expected, rtol=1e-6)


def test_no_momentum_and_no_memory():
    """b1 = b2 = 0 gives the sign of the gradient."""
    seen, _ = run(
        zojax.scale_by_radazo(0, 0), [jnp.array([3.0, -0.2])] * 2, jnp.ones(2)
    )
    np.testing.assert_allclose(np.stack(seen), [[1.0, -1.0]] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"b1": 1.0}, r"b1 must be a number >= 0 and < 1, got 1.0$"),
        ({"b1": -0.1}, r"b1 must be a number >= 0 and < 1, got -0.1$"),
        ({"b1": np.nan}, r"b1 must be a number >= 0 and < 1, got nan$"),
        ({"b1": True}, r"b1 must be a number >= 0 and < 1, got True$"),
        ({"b1": None}, r"b1 must be a number >= 0 and < 1, got None$"),
        ({"b2": 1.5}, r"b2 must be a number >= 0 and < 1, got 1.5$"),
        ({"b2": "0.9"}, r"b2 must be a number >= 0 and < 1, got '0.9'$"),
        ({"eps": 0.0}, r"eps must be a number > 0, got 0.0$"),
        ({"eps": -1e-8}, r"eps must be a number > 0, got -1e-08$"),
        ({"eps": np.nan}, r"eps must be a number > 0, got nan$"),
        ({"eps": None}, r"eps must be a number > 0, got None$"),
    ],
)
def test_bad_arguments_are_refused_in_the_factory(arguments, match):
    with pytest.raises(ValueError, match=match):
        zojax.scale_by_radazo(**arguments)
    with pytest.raises(ValueError, match=match):
        zojax.radazo(1e-2, **arguments)
