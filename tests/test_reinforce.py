"""REINFORCE against its formulas in float64 and against the forward difference."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax import perturbations

KEY = 13
BASELINES = ("value", "mean", "leave_one_out", "optimal")
GAUSSIAN = perturbations.gaussian()
SPHERE = perturbations.sphere()
# Compiling takes longer than running here.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@perturbations.from_rows
def unit_sphere(key, k, num_directions, params):
    """Directions of length 1, as the textbook form of sphere search draws them."""
    v = SPHERE(key, k, num_directions, params)
    d = sum(leaf.size for leaf in jax.tree.leaves(v))
    return jax.tree.map(lambda x: x / math.sqrt(d), v)


def flat(tree):
    """A pytree as one float64 vector, in tree order."""
    return np.concatenate([np.asarray(x, float).ravel() for x in jax.tree.leaves(tree)])


@functools.partial(jit, static_argnums=(0, 2))
def _rows(sampler, count, num, params):
    step_key = jax.random.fold_in(jax.random.key(KEY), count)
    draw = lambda k: sampler(step_key, k, num, params)
    return jax.vmap(draw)(jnp.arange(num))


def rows(sampler, count, num, params):
    """The directions u_k of a step, from the documented keys."""
    leaves = jax.tree.leaves(_rows(sampler, count, num, params))
    return np.concatenate([np.asarray(x, float).reshape(num, -1) for x in leaves], 1)


def policy_gradient(baseline, f, x, mu, u, importance=1.0):
    """(1/K) sum rho [f(x_k) - b_k] (x_k - theta) / mu^2, in float64."""
    y = np.array([f(x + mu * row) for row in u])
    num = len(y)
    if baseline == "value":
        b = np.full(num, f(x))
    elif baseline == "mean":
        b = np.full(num, y.sum() / num)
    elif baseline == "leave_one_out":
        b = np.array([np.delete(y, k).mean() for k in range(num)])
    else:
        squared_scores = np.sum((u / mu) ** 2, axis=1)
        b = np.full(num, (y * squared_scores).sum() / squared_scores.sum())
    scores = (mu * u) / mu**2
    return importance / num * (y - b) @ scores


def estimates_at(opt, params, value_fn, num_steps):
    """Estimates of many steps at one point: independent samples of one estimator."""
    state = opt.init(params)

    def one(count):
        at = state._replace(count=count)
        return opt.update(None, at, params, value_fn=value_fn)[0]

    return np.asarray(jit(jax.vmap(one))(jnp.arange(num_steps)), float)


# -- the formulas ----------------------------------------------------------------------

D = 7
SLOPE = np.sin(np.arange(1.0, D + 1))
HESSIAN = np.cos(np.add.outer(np.arange(D), np.arange(D))) + 2 * np.eye(D)


def quadratic(x):
    return SLOPE @ x + 0.5 * x @ HESSIAN @ x + 1.0


def value_fn(p):
    x = jnp.concatenate([p["a"].ravel(), p["b"]])
    return jnp.asarray(SLOPE) @ x + 0.5 * x @ (jnp.asarray(HESSIAN) @ x) + 1.0


@pytest.mark.parametrize(
    ("baseline", "search", "chunk_size"),
    [
        ("value", "gaussian", None),
        ("mean", "gaussian", 2),
        ("leave_one_out", "gaussian", None),
        ("optimal", "gaussian", 2),
        ("optimal", "gaussian", None),
        ("value", "sphere", 2),
        ("leave_one_out", "sphere", None),
    ],
)
def test_estimate_equals_the_policy_gradient(baseline, search, chunk_size):
    """A pytree, a scheduled smoothing, over steps at which params move."""
    num, smoothing = 3, lambda count: 0.3 / (1.0 + count)
    sampler = GAUSSIAN if search == "gaussian" else SPHERE
    with jax.enable_x64(True):
        opt = zojax.reinforce(
            smoothing,
            num,
            key=KEY,
            baseline=baseline,
            search=search,
            chunk_size=chunk_size,
        )
        p = {"a": jnp.linspace(-1.0, 1.0, 4).reshape(2, 2), "b": jnp.ones(3)}
        state = opt.init(p)
        update = jit(lambda s, p: opt.update(None, s, p, value_fn=value_fn))
        for count in range(2):
            u, mu = rows(sampler, count, num, p), smoothing(count)
            expected = policy_gradient(baseline, quadratic, flat(p), mu, u)
            g, state = update(state, p)
            assert jax.tree.structure(g) == jax.tree.structure(p)
            # Two programs may round the float32 noise apart in its last bit.
            np.testing.assert_allclose(flat(g), expected, rtol=1e-6, atol=1e-6)
            p = jax.tree.map(lambda p, g: p - 0.02 * g, p, g)


def test_value_baseline_is_the_forward_difference():
    """Theorem 3.2: the same estimates, and the same path over 200 steps (Figure 2)."""
    f = lambda x: 0.5 * jnp.sum(jnp.arange(1.0, 6.0) * x**2) + x[0]
    x = jnp.array([1.0, -1.0, 0.5, 2.0, -0.3])
    kwargs = {"key": KEY}
    reinforce = zojax.reinforce(0.05, 4, baseline="value", **kwargs)
    forward = zojax.two_point(0.05, 4, difference="forward", **kwargs)
    a, b = (estimates_at(opt, x, f, 50) for opt in (reinforce, forward))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
    assert np.abs(a).max() > 10

    def walk(opt):
        def step(carry, _):
            x, state = carry
            g, state = opt.update(None, state, x, value_fn=f)
            x = x - 0.01 * g
            return (x, state), x

        return jit(lambda x: jax.lax.scan(step, (x, opt.init(x)), length=200)[1])(x)

    paths = [np.asarray(walk(opt), float) for opt in (reinforce, forward)]
    assert f(paths[0][-1]) < 0.1 * f(x)
    np.testing.assert_allclose(paths[0], paths[1], rtol=0, atol=1e-5)


def test_log_density():
    """Numbers by hand, and a density: it integrates to 1 with variance mu^2."""
    # -0.5^2 / (2 * 4) - log 2 - log(2 pi) / 2
    by_hand = -0.03125 - 0.6931471806 - 0.9189385332
    density = zojax.gaussian_log_density(jnp.array([0.5]), 2.0)
    np.testing.assert_allclose(density, by_hand, rtol=1e-6)
    # Independent coordinates of a pytree: the logarithms add.
    tree = {"a": jnp.array([0.5, 0.5]), "b": jnp.array([[0.5]])}
    np.testing.assert_allclose(
        zojax.gaussian_log_density(tree, 2.0), 3 * by_hand, rtol=1e-6
    )
    grid = jnp.linspace(-8.0, 8.0, 2001)
    log_density = jax.vmap(lambda z: zojax.gaussian_log_density(z[None], 0.7))(grid)
    weight = np.exp(np.asarray(log_density, float)) * (16.0 / 2000)
    np.testing.assert_allclose(weight.sum(), 1.0, rtol=1e-5)
    second_moment = (weight * np.asarray(grid, float) ** 2).sum()
    np.testing.assert_allclose(second_moment, 0.49, rtol=1e-5)


@pytest.mark.parametrize("mu", [1e-3, 0.5, 3.0])
def test_score_is_u_over_mu(mu):
    """grad_theta log N(theta + mu u; theta, mu^2 I) = u / mu."""
    u = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.25]])}

    def log_policy(theta):
        x = jax.tree.map(lambda v: mu * v, u)  # around theta = 0
        offset = jax.tree.map(jnp.subtract, x, theta)
        return zojax.gaussian_log_density(offset, mu)

    score = jax.grad(log_policy)(jax.tree.map(jnp.zeros_like, u))
    np.testing.assert_allclose(score["a"], np.array([1.0, -2.0]) / mu, rtol=1e-5)
    np.testing.assert_allclose(score["b"], np.array([[0.25]]) / mu, rtol=1e-5)


# -- the sphere ------------------------------------------------------------------------


def test_sphere_search_equals_two_point_on_the_sphere():
    """At |u| = sqrt(d) the importance weight is 1."""
    f = lambda x: jnp.sum(jnp.arange(1.0, 6.0) * x**2)
    x = jnp.linspace(-1.0, 1.0, 5)
    reinforce = zojax.reinforce(0.1, 3, key=KEY, search="sphere")
    forward = zojax.two_point(0.1, 3, key=KEY, sampler=SPHERE)
    a, b = (estimates_at(opt, x, f, 50) for opt in (reinforce, forward))
    assert np.abs(a).max() > 1
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_unit_sphere_search_has_importance_weight_d():
    """Theorem 3.3: d / (K mu) sum_k [f(x + mu u_k) - f(x)] u_k with |u_k| = 1."""
    num, mu = 3, 0.1
    with jax.enable_x64(True):
        p = {"a": jnp.linspace(-1.0, 1.0, 4).reshape(2, 2), "b": jnp.ones(3)}
        opt = zojax.reinforce(mu, num, key=KEY, search="sphere", sampler=unit_sphere)
        g, _ = jit(lambda s: opt.update(None, s, p, value_fn=value_fn))(opt.init(p))
        u, x = rows(unit_sphere, 0, num, p), flat(p)
    np.testing.assert_allclose(np.sum(u**2, axis=1), 1.0, rtol=1e-6)
    textbook = sum((quadratic(x + mu * row) - quadratic(x)) * row for row in u)
    np.testing.assert_allclose(flat(g), D / (num * mu) * textbook, rtol=1e-6)


@pytest.mark.parametrize("sampler", [None, unit_sphere], ids=["sqrt(d)", "1"])
@pytest.mark.parametrize("baseline", ["value", "leave_one_out"])
def test_sphere_search_is_unbiased_at_any_radius(sampler, baseline):
    """E g = grad f on a linear f; 5 standard errors per coordinate, 20,000 samples."""
    slope = np.array([1.0, -2.0, 0.5, 3.0])
    f = lambda x: jnp.dot(jnp.asarray(slope, x.dtype), x) + 3.0
    opt = zojax.reinforce(
        0.5, 2, key=KEY, search="sphere", sampler=sampler, baseline=baseline
    )
    samples = estimates_at(opt, jnp.ones(4), f, 20_000)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(axis=0) - slope) < 5 * error)
    assert np.all(error < 0.1)


# -- baselines -------------------------------------------------------------------------


def test_optimal_baseline_has_less_variance_than_the_value():
    """Far less where the curvature lifts every sample: mu^2 tr(H) / 2 above f(x).

    Total variance E|g - E g|^2 of 20,000 samples; the gap is more than 5 standard
    errors of the difference.
    """
    x = jnp.array([0.1, -0.05, 0.02, 0.0, 0.03])
    f = lambda x: 50.0 * jnp.sum(x**2) + x[0]
    mean, error = {}, {}
    for baseline in ("value", "optimal", "mean"):
        opt = zojax.reinforce(0.5, 10, key=KEY, baseline=baseline)
        samples = estimates_at(opt, x, f, 20_000)
        square = np.sum((samples - samples.mean(axis=0)) ** 2, axis=1)
        mean[baseline] = square.mean()
        error[baseline] = square.std(ddof=1) / np.sqrt(len(square))
    for better, worse in (("optimal", "value"), ("optimal", "mean")):
        standard_error = np.hypot(error[better], error[worse])
        assert mean[better] + 5 * standard_error < mean[worse]


@pytest.mark.parametrize("baseline", BASELINES)
def test_bad_values_offsets_constants_and_the_log(baseline):
    """Values that are not finite are left out and counted; an offset cancels."""
    num, mu, x = 6, 0.25, jnp.array([0.5, -1.0, 2.0])
    at = np.asarray(x, float)

    def f(z, limit, offset, scale):
        # Multiples of 1/16 are exact beside 10^6.
        loss = scale * jnp.round(16 * jnp.sum(z**2)) / 16 + offset
        return jnp.where(z[0] > limit, jnp.nan, loss)

    rounded = lambda z: np.round(16 * np.sum(np.asarray(z, np.float32) ** 2)) / 16
    opt = zojax.reinforce(mu, num, key=KEY, baseline=baseline)

    @jit
    def update(state, limit, offset, scale=1.0):
        kwargs = {"limit": limit, "offset": offset, "scale": scale}
        return opt.update(None, state, x, value_fn=f, **kwargs)

    u = rows(GAUSSIAN, 0, num, x)
    limit = 0.5 + 0.5 * mu
    keep = u[:, 0] < 0.5
    assert 2 <= keep.sum() < num
    expected = policy_gradient(baseline, rounded, at, mu, u[keep])
    assert np.linalg.norm(expected) > 1
    for offset in (0.0, 1e6):
        g, state = update(opt.init(x), limit, offset)
        np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-5)
        assert int(state.log.num_nonfinite) == num - keep.sum()
    y = np.array([rounded(at + mu * row) for row in u[keep]])
    mean = update(opt.init(x), limit, 0.0)[1].log.query_mean
    np.testing.assert_allclose(mean, y.mean(), rtol=1e-5)
    if baseline == "value":
        assert float(state.log.value_at_params) == 5.25 + 1e6
    else:
        assert state.log.value_at_params is None
    g, last = update(state, -math.inf, 0.0)
    assert g.tolist() == [0.0] * 3
    lost = num + (baseline == "value")
    assert int(last.log.num_nonfinite - state.log.num_nonfinite) == lost
    for constant in (0.0, 1e6 + 0.1):
        g, _ = update(opt.init(x), math.inf, constant, 0.0)
        assert g.tolist() == [0.0] * 3


# -- queries, dtypes, frozen leaves ----------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "value", "expected"),
    [
        ({}, None, 5),
        ({"chunk_size": 3}, 5.0, 4),
        ({"baseline": "mean"}, None, 4),
        ({"baseline": "leave_one_out", "search": "sphere"}, None, 4),
        ({"baseline": "optimal"}, None, 4),
    ],
    ids=str,
)
def test_number_of_calls(kwargs, value, expected):
    """K, and one more for the baseline f(theta) unless value= is passed."""
    points = []

    def simulator(x):
        points.append(np.array(x))
        return np.float32(np.sum(np.square(x)))

    def external(x):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(simulator, shape, x, vmap_method="sequential")

    opt = zojax.reinforce(0.1, 4, key=KEY, **kwargs)
    x = jnp.arange(3.0)
    update = jit(lambda s: opt.update(None, s, x, value_fn=external, value=value))
    jax.block_until_ready(update(opt.init(x)))
    assert len(points) == expected
    at_params = sum((point == np.arange(3.0)).all() for point in points)
    assert at_params == expected - 4


def test_aux_is_from_params_or_else_from_the_first_sample():
    x = jnp.arange(3.0)
    f = lambda x: (jnp.sum(x**2), x)
    kwargs = {"key": KEY, "has_aux": True, "aux_like": x}
    first = np.arange(3.0) + 0.1 * rows(GAUSSIAN, 0, 2, x)[0]
    for baseline, value, expected in (
        ("value", None, np.arange(3.0)),
        ("value", 5.0, first),
        ("mean", None, first),
    ):
        opt = zojax.reinforce(0.1, 2, baseline=baseline, **kwargs)
        update = jit(
            lambda s, o=opt, v=value: o.update(None, s, x, value_fn=f, value=v)[1]
        )
        aux = update(opt.init(x)).log.aux
        np.testing.assert_allclose(aux, expected, rtol=1e-6, atol=1e-7)


def test_bfloat16_params():
    """The score comes from the noise, not from the rounded x - theta."""
    num, mu = 4, 2.0**-6
    params = jnp.zeros(3, jnp.bfloat16)
    slope = np.array([1.0, -2.0, 0.5])
    f = lambda z: jnp.dot(jnp.asarray(slope, jnp.float32), z.astype(jnp.float32))
    opt = zojax.reinforce(mu, num, key=KEY)
    g = jit(lambda s: opt.update(None, s, params, value_fn=f)[0])(opt.init(params))
    u = rows(GAUSSIAN, 0, num, params)
    assert g.dtype == jnp.bfloat16
    expected = (u @ slope) @ u / num  # around 0, mu u is exact in bfloat16
    np.testing.assert_allclose(np.asarray(g, float), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("search", ["gaussian", "sphere"])
def test_frozen_leaves_do_not_count_in_d(search):
    """On the unit sphere the weight is the number of trainable entries."""
    mask = {"head": True, "body": False}
    base = GAUSSIAN if search == "gaussian" else unit_sphere
    sampler = perturbations.restrict(base, mask)
    opt = zojax.reinforce(0.1, 3, key=KEY, search=search, sampler=sampler)
    params = {"head": jnp.array([0.5, -1.0, 2.0]), "body": jnp.full(40, 2.0)}
    f = lambda p: jnp.sum(p["head"] ** 2) * p["body"][0]
    g = jit(lambda s: opt.update(None, s, params, value_fn=f)[0])(opt.init(params))
    assert not g["body"].any()
    u = rows(base, 0, 3, {"head": params["head"], "body": None})
    h = lambda z: 2 * np.sum(z**2)
    weight = 3.0 if search == "sphere" else 1.0
    expected = policy_gradient("value", h, flat(params["head"]), 0.1, u, weight)
    np.testing.assert_allclose(g["head"], expected, rtol=1e-4, atol=1e-4)


# -- arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"smoothing": 0}, r"smoothing must be a number > 0, .*schedule, got 0$"),
        ({"num_directions": 0}, r"num_directions must be an int >= 1, got 0$"),
        ({"num_directions": 1.5}, r"num_directions must be an int >= 1, got 1.5$"),
        ({"baseline": "median"}, r"baseline must be one of \('value'.*got 'median'$"),
        ({"search": "uniform"}, r"search must be one of \('gaussian'.*got 'uniform'$"),
        ({"sampler": "sphere"}, r"sampler must be a zojax.Sampler.*got 'sphere'$"),
        ({"chunk_size": 0}, r"chunk_size must be an int >= 1 or None, got 0$"),
        (
            {"baseline": "mean", "num_directions": 1},
            r"num_directions must be an int >= 2 with baseline='mean', got 1$",
        ),
        (
            {"baseline": "leave_one_out", "num_directions": 1},
            r"num_directions must be an int >= 2 with baseline='leave_one_out', got 1$",
        ),
        (
            {"baseline": "optimal", "num_directions": 1},
            r"num_directions must be an int >= 2 with baseline='optimal', got 1$",
        ),
        ({"key": None}, r"key must be .*got None$"),
        ({"aux_like": 0.0}, r"aux_like needs has_aux=True"),
    ],
)
def test_bad_arguments_are_refused_in_the_factory(arguments, match):
    with pytest.raises(ValueError, match=match):
        zojax.reinforce(
            **({"smoothing": 0.1, "num_directions": 2, "key": 0} | arguments)
        )
