"""2-SPSA against closed forms on a quadratic, and against its points by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax.perturbations import lazy, rademacher, restrict

D = 4
A = np.array(
    [[3.0, 1.0, 0.0, -0.5], [1.0, -2.0, 0.5, 0.0], [0.0, 0.5, 1.0, 0], [-0.5, 0, 0, 4]]
)
X = jnp.array([1.0, -1.0, 0.5, 2.0])


def quadratic(x):
    return x @ jnp.asarray(A, x.dtype) @ x / 2


def inverse(hessian, floor):
    """Numpy's (sqrt(H H) + m I)^-1."""
    values, vectors = np.linalg.eigh(np.asarray(hessian, float))
    return vectors @ np.diag(1 / (np.abs(values) + floor)) @ vectors.T


def test_hessian_and_gradient_of_a_quadratic():
    """Their means are exact, within 5 standard errors, whose closed forms are known.

    With s = w^T A v: var of (w_i v_j + w_j v_i) s / 2 is |A|^2 - A_ii^2 on the diagonal
    and |A|^2 / 2 + A_ii A_jj beside it; var of g_j is |g|^2 - g_j^2.
    """
    K, steps, floor = 500, 8, 1e4
    opt = zojax.second_order_spsa(
        0.1, floor, key=0, num_directions=K, hessian_smoothing=0.2, prior_weight=0.0
    )

    with jax.enable_x64(True):
        x64 = jnp.asarray(X, jnp.float64)
        state, found = opt.init(x64), []
        update = jax.jit(lambda s: opt.update(None, s, x64, value_fn=quadratic))
        for _ in range(steps):
            updates, state = update(state)
            found.append(np.linalg.inv(inverse(state.hessian, floor)) @ updates)
        hessian = np.asarray(state.hessian)
    assert int(state.num_samples) == steps
    norm, diagonal = np.sum(A**2), np.diag(A)
    variance = norm / 2 + np.outer(diagonal, diagonal)
    variance[np.diag_indices(D)] = norm - diagonal**2
    error = np.sqrt(variance / (K * steps))
    assert (np.abs(hessian - A) < 5 * error).all()
    np.testing.assert_array_equal(hessian, hessian.T)
    g = A @ np.asarray(X, float)
    error = np.sqrt((g @ g - g**2) / (K * steps))
    assert (np.abs(np.mean(found, axis=0) - g) < 5 * error).all()


def test_a_step_by_hand():
    """Of the points that it asks for, with what failed, and a prior."""
    c, other, floor = 0.1, 0.25, 0.5
    opt = zojax.second_order_spsa(
        c, floor, key=3, num_directions=3, hessian_smoothing=other, prior=2.0,
        prior_weight=4.0,
    )  # fmt: skip
    state = opt.init(X)
    hessian, samples = 2.0 * np.eye(D), 0
    for bad in ([], [5], [0, 6, 11]):
        points = np.asarray(opt.ask(state, X), float)
        assert points.shape == (12, D)
        values = np.array([float(quadratic(jnp.asarray(p))) for p in points])
        values[bad] = np.nan
        updates, state = opt.update(None, state, X, values=values)
        sample, gradient, number = np.zeros((D, D)), np.zeros(D), 0
        for i in range(0, 12, 4):
            p, y = points[i : i + 4], values[i : i + 4]
            v, w = (p[0] - p[1]) / (2 * c), (p[2] - p[0]) / other
            np.testing.assert_allclose(np.abs([v, w]), 1, rtol=1e-4)
            np.testing.assert_allclose(p[3] - p[1], other * w, atol=1e-5)
            if np.isfinite(y).all():
                number += 1
                gradient += (y[0] - y[1]) / (2 * c) * v
                curvature = (y[2] - y[0] - y[3] + y[1]) / (2 * c * other)
                sample += curvature * (np.outer(v, w) + np.outer(w, v)) / 2
        if number:
            samples += 1
            hessian += (sample / number - hessian) / (4 + samples)
            gradient /= number
        np.testing.assert_allclose(state.hessian, hessian, rtol=1e-3, atol=1e-3)
        expected = inverse(hessian, floor) @ gradient
        np.testing.assert_allclose(updates, expected, rtol=2e-3, atol=2e-3)
    assert int(state.num_samples) == samples == 2
    assert int(state.log.num_nonfinite) == 4


def test_feedback():
    """By hand, and with errors that shrink faster on a quadratic."""
    opts = [
        zojax.second_order_spsa(0.1, 1.0, key=1, prior_weight=16.0, feedback=feedback)
        for feedback in (False, True)
    ]
    plain, fed = (
        jax.jit(lambda s, opt=opt: opt.update(None, s, X, value_fn=quadratic)[1])
        for opt in opts
    )
    state = opts[0].init(X)
    state = state._replace(hessian=jnp.asarray(A, jnp.float32) + jnp.eye(D))
    # The same directions: what is fed back is the sample of what H says too much, I.
    p = np.asarray(opts[0].ask(state, X), float)
    v, w = (p[0] - p[1]) / 0.2, (p[2] - p[0]) / 0.1
    both = (np.outer(v, w) + np.outer(w, v)) / 2
    expected = np.asarray(state.hessian) - (w @ v) * both / 17
    np.testing.assert_allclose(fed(state).hessian, expected, atol=1e-3)
    ends = []
    for step, opt in ((plain, opts[0]), (fed, opts[1])):
        state = opt.init(X)
        for _ in range(600):
            state = step(state)
        ends.append(np.linalg.norm(np.asarray(state.hessian) - A))
    assert ends[1] < 0.3 * ends[0]


def test_it_descends_where_scales_differ():
    """Curvatures of 1 to 100, beside SPSA with the largest step that is stable."""
    scales = jnp.array([1.0, 10.0, 100.0])
    f = lambda x: jnp.sum(scales * x**2) / 2
    start = jnp.ones(3)

    def end(opt, steps):
        def step(carry, _):
            x, state = carry
            updates, state = opt.update(None, state, x, value_fn=f)
            return (optax.apply_updates(x, updates), state), None

        run = jax.jit(lambda c: jax.lax.scan(step, c, None, length=steps)[0])
        return float(f(run((start, opt.init(start)))[0]))

    newton = zojax.second_order_spsa(0.1, 0.1, key=0, prior=100.0, prior_weight=10.0)
    second = end(optax.chain(newton, optax.sgd(0.3)), 400)
    first = end(zojax.spsa(0.005, 0.1, key=0), 800)
    assert second < 0.1 * first


def test_what_it_refuses():
    make = lambda *args, **kwargs: zojax.second_order_spsa(*args, key=0, **kwargs)
    with pytest.raises(ValueError, match="at most 1000 trainable entries"):
        make(0.1, 0.1).init(jnp.zeros(1001))
    frozen = restrict(rademacher(), (True, False))
    make(0.1, 0.1, sampler=frozen).init((jnp.zeros(2), jnp.zeros(1001)))
    for kwargs, message in (
        ({"min_curvature": 0.0}, "min_curvature must be a number > 0"),
        ({"smoothing": 0.0}, "smoothing must be a number > 0"),
        ({"hessian_smoothing": -1.0}, "hessian_smoothing must be a number > 0"),
        ({"prior": 0.0}, "prior must be a number > 0"),
        ({"prior_weight": -1.0}, "prior_weight must be a number >= 0"),
        ({"num_directions": 0}, "num_directions must be an int >= 1"),
        ({"sampler": lazy(rademacher())}, "sampler must be a sampler whose rows"),
    ):
        with pytest.raises(ValueError, match=message):
            zojax.second_order_spsa(
                **{"smoothing": 0.1, "min_curvature": 0.1, "key": 0, **kwargs}
            )
