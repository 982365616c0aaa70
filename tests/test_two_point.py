"""Two-point estimators against formulas, closed forms and Monte Carlo."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import perturbations

DIFFERENCES = ("forward", "central", "mean", "leave_one_out")
KEY = 7
GAUSSIAN = perturbations.gaussian()
RADEMACHER = perturbations.rademacher()
# Compiling takes longer than running here.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def flat(tree):
    """A pytree as one float64 vector, in tree order."""
    return np.concatenate([np.asarray(x, float).ravel() for x in jax.tree.leaves(tree)])


@functools.partial(jit, static_argnums=(0, 2))
def _rows(sampler, count, num_directions, params):
    step_key = jax.random.fold_in(jax.random.key(KEY), count)
    draw = lambda k: sampler(step_key, k, num_directions, params)
    return jax.vmap(draw)(jnp.arange(num_directions))


def directions(sampler, count, num_directions, params):
    """The K x d matrix of step ``count``, from the documented keys."""
    leaves = jax.tree.leaves(_rows(sampler, count, num_directions, params))
    return np.concatenate(
        [np.asarray(x, float).reshape(num_directions, -1) for x in leaves], axis=1
    )


def estimates_at(opt, params, value_fn, num_steps, **kwargs):
    """Estimates of many steps at one point: independent samples of one estimator."""
    state = opt.init(params)

    def one(count):
        at = state._replace(count=count)
        return opt.update(None, at, params, value_fn=value_fn, **kwargs)[0]

    return np.asarray(jit(jax.vmap(one))(jnp.arange(num_steps)), float)


def assert_mean(samples, expected, standard_errors=5.0):
    """Each coordinate's mean is within 5 of its standard errors."""
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    gap = np.abs(samples.mean(axis=0) - expected)
    assert np.all(gap <= standard_errors * error + 1e-6), (gap, error)


# -- the formulas ----------------------------------------------------------------------


def formula(difference, f, x, mu, v):
    """The estimate as papers write it, in float64; None marks no query there."""
    num = len(v)
    y = np.array([f(x + mu * row) for row in v])
    if difference == "forward":
        slopes = [(y[k] - f(x)) / mu for k in range(num)]
    elif difference == "central":
        slopes = [(y[k] - f(x - mu * v[k])) / (2 * mu) for k in range(num)]
    elif difference == "mean":
        slopes = [(y[k] - sum(y) / num) / mu for k in range(num)]
    else:
        others = [np.delete(y, k).mean() for k in range(num)]
        slopes = [(y[k] - others[k]) / mu for k in range(num)]
    return sum(slopes[k] * v[k] for k in range(num)) / num


SLOPE = np.sin(np.arange(1.0, 11.0))
HESSIAN = np.cos(np.add.outer(np.arange(10.0), np.arange(10.0))) + 2 * np.eye(10)


@pytest.mark.parametrize(
    ("difference", "chunk_size"),
    [
        ("forward", None),
        ("forward", 2),
        ("central", None),
        ("central", 2),
        ("mean", None),
        ("leave_one_out", 2),
    ],
)
def test_estimate_equals_the_formula_over_moving_steps(difference, chunk_size):
    """Linear and quadratic, a pytree, a scheduled smoothing, params that move."""
    smoothing = lambda count: 0.3 / (1.0 + count)
    with jax.enable_x64(True):
        opt = zojax.two_point(
            smoothing, 3, key=KEY, difference=difference, chunk_size=chunk_size
        )
        params = {"a": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(4)}

        def value_fn(p, curvature):
            x = jnp.concatenate([p["a"].ravel(), p["b"]])
            return jnp.dot(jnp.asarray(SLOPE), x) + curvature / 2 * jnp.dot(
                x, jnp.asarray(HESSIAN) @ x
            )

        update = jit(
            lambda state, p, c: opt.update(
                None, state, p, value_fn=value_fn, curvature=c
            )
        )
        for curvature in (0.0, 1.0):
            f = lambda x, c=curvature: SLOPE @ x + c / 2 * x @ HESSIAN @ x
            p, state = params, opt.init(params)
            for count in range(3):
                v = directions(GAUSSIAN, count, 3, p)
                expected = formula(difference, f, flat(p), smoothing(count), v)
                g, state = update(state, p, curvature)
                assert jax.tree.structure(g) == jax.tree.structure(params)
                assert g["a"].shape == (2, 3)
                # Two programs may round the float32 noise apart in its last bit.
                np.testing.assert_allclose(flat(g), expected, rtol=1e-6, atol=1e-6)
                p = jax.tree.map(lambda p, g: p - 0.05 * g, p, g)


def test_smoothing_schedule_takes_the_step_count():
    """Central differences of x^3 at 0 along v = +-1 give exactly mu_t^2."""
    opt = zojax.two_point(
        lambda count: 0.1 * (count + 1),
        1,
        key=0,
        sampler=perturbations.rademacher(),
        difference="central",
    )
    x, f = jnp.zeros(1), lambda x: x[0] ** 3
    update = jit(lambda s: opt.update(None, s, x, value_fn=f))
    state, seen = opt.init(x), []
    for _ in range(3):
        g, state = update(state)
        seen.append(g.item())
    np.testing.assert_allclose(seen, [0.01, 0.04, 0.09], rtol=1e-5)
    assert int(state.count) == 3


# -- expectation -----------------------------------------------------------------------

LINEAR = np.array([1.0, -2.0, 3.0, 0.5])


def linear(x):
    return jnp.dot(jnp.asarray(LINEAR, x.dtype), x) + 3.0


@pytest.mark.parametrize(
    ("difference", "name"),
    [
        ("forward", "gaussian"),
        ("forward", "orthogonal"),
        ("central", "sphere"),
        ("leave_one_out", "rademacher"),
        ("leave_one_out", "orthogonal"),
    ],
)
def test_unbiased_on_a_linear_function(difference, name):
    """E g = grad f, 5 standard errors per coordinate, 20,000 samples."""
    sampler = getattr(perturbations, name)()
    opt = zojax.two_point(0.5, 2, key=KEY, sampler=sampler, difference=difference)
    samples = estimates_at(opt, jnp.ones(4), linear, 20_000)
    assert_mean(samples, LINEAR)


@pytest.mark.parametrize("difference", ["forward", "central", "leave_one_out"])
def test_gaussian_estimates_the_gradient_of_the_smoothed_objective(difference):
    """E g = grad E f(x + mu u): for c . x^3 that is 3 c (x^2 + mu^2)."""
    mu, x, c = 0.7, np.array([0.3, -0.5, 0.8]), np.array([0.5, 1.0, -0.7])
    quad = np.array([2.0, -1.0, 1.0])
    f = lambda z: jnp.sum(jnp.asarray(c) * z**3) + jnp.sum(jnp.asarray(quad) * z**2)
    opt = zojax.two_point(mu, 3, key=KEY, difference=difference)
    samples = estimates_at(opt, jnp.asarray(x, jnp.float32), f, 40_000)
    smoothed = 3 * c * (x**2 + mu**2) + 2 * quad * x
    assert_mean(samples, smoothed)
    # The claim is about the smoothed objective: the plain gradient is far outside.
    error = samples.std(axis=0) / np.sqrt(len(samples))
    plain = 3 * c * x**2 + 2 * quad * x
    assert np.max(np.abs(samples.mean(axis=0) - plain) / error) > 10


def test_clip_bounds_each_directional_derivative():
    """On f = a . x the estimate is the mean of clip(a . v_k) v_k; a schedule serves."""
    a, key, k = jnp.array([1.0, -2.0, 4.0]), jax.random.key(4), 5
    bound = optax.linear_schedule(2.5, 0.5, 2)
    opt = zojax.two_point(
        1e-2,
        k,
        key=key,
        sampler=perturbations.gaussian(),
        difference="central",
        clip=bound,
    )
    state = opt.init(a)
    for step in range(3):
        update, state = opt.update(None, state, 0 * a, value_fn=lambda x: a @ x)
        step_key = jax.random.fold_in(key, step)
        rows = np.stack([perturbations.gaussian()(step_key, i, k, a) for i in range(k)])
        slopes = rows @ np.asarray(a)
        limit = (2.5, 1.5, 0.5)[step]
        assert np.abs(slopes).max() > limit
        expected = np.clip(slopes, -limit, limit) @ rows / k
        np.testing.assert_allclose(update, expected, rtol=1e-4)


def test_mean_shrinks_by_one_sample_in_k():
    """E g = (K-1)/K grad f for independent rows."""
    sampler = perturbations.sphere()
    opt = zojax.two_point(0.5, 3, key=KEY, sampler=sampler, difference="mean")
    samples = estimates_at(opt, jnp.ones(4), linear, 20_000)
    assert_mean(samples, LINEAR * 2 / 3)


def test_simplex_with_mean_is_unbiased_and_exact_with_enough_points():
    """The rows sum to zero: nothing shrinks; exact where n - 1 >= d."""
    sampler = perturbations.simplex()
    make = lambda n: zojax.two_point(
        0.5, n, key=KEY, sampler=sampler, difference="mean"
    )
    samples = estimates_at(make(4), jnp.ones(4), linear, 20_000)
    assert samples.std(axis=0).max() > 0.1  # d = 4 > n - 1: a real average
    assert_mean(samples, LINEAR)
    exact = estimates_at(make(8), jnp.ones(4), linear, 50)
    np.testing.assert_allclose(exact, np.tile(LINEAR, (50, 1)), rtol=2e-5)


@pytest.mark.parametrize("difference", ["forward", "leave_one_out"])
def test_sgd_descends(difference):
    """The output is a gradient: after optax.sgd the loss falls a hundredfold."""
    opt = optax.chain(
        zojax.two_point(1e-2, 8, key=KEY, difference=difference), optax.sgd(0.05)
    )
    f = lambda x: jnp.sum((x - 1) ** 2)

    def step(carry, _):
        x, state = carry
        updates, state = opt.update(None, state, x, value_fn=f)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.full(4, 3.0)
    run = jit(lambda x: jax.lax.scan(step, (x, opt.init(x)), length=150)[0][0])
    assert f(run(x)) < 1e-2 * f(x)


# -- counted queries -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "value", "chunk_size", "expected"),
    [
        ("forward", None, None, 5),
        ("forward", None, 3, 5),
        ("forward", 12.5, None, 4),
        ("central", None, None, 8),
        ("central", 12.5, 1, 8),
        ("mean", None, None, 4),
        ("leave_one_out", None, None, 4),
    ],
)
def test_number_of_calls_of_an_external_simulator(
    difference, value, chunk_size, expected
):
    """Forward K + 1 (K with value=), central 2K, mean and leave_one_out K."""
    points = []

    def simulator(x):
        points.append(np.array(x))
        return np.float32(np.sum(np.square(x)))

    def value_fn(x):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(simulator, shape, x, vmap_method="sequential")

    opt = zojax.two_point(0.1, 4, key=KEY, difference=difference, chunk_size=chunk_size)
    x = jnp.arange(3.0)
    update = jit(lambda s: opt.update(None, s, x, value_fn=value_fn, value=value))
    g, state = jax.block_until_ready(update(opt.init(x)))
    assert len(points) == expected
    v = directions(GAUSSIAN, 0, 4, x)
    base = 12.5 if value is not None else 5.0
    if difference == "forward":
        # The value that the caller passed is used, even where it is not f(params).
        y = np.sum((np.arange(3.0) + 0.1 * v) ** 2, axis=1)
        np.testing.assert_allclose(g, (y - base) / 0.1 @ v / 4, rtol=1e-4, atol=1e-4)
        assert float(state.log.value_at_params) == base


# -- what the state says ---------------------------------------------------------------


def with_aux(x):
    return jnp.sum(x**2), {"at": x}


@pytest.mark.parametrize(
    ("difference", "value", "at_params"),
    [
        ("forward", None, True),
        ("forward", 5.0, False),
        ("central", None, False),
        ("mean", None, False),
        ("leave_one_out", None, False),
    ],
)
def test_aux_is_from_the_stated_evaluation(difference, value, at_params):
    """At params where the estimator queries there, else at theta + mu v_0."""
    x = jnp.arange(3.0)
    like = {"at": jax.ShapeDtypeStruct((3,), jnp.float32)}
    opt = zojax.two_point(
        0.1, 2, key=KEY, difference=difference, has_aux=True, aux_like=like
    )
    state = opt.init(x)
    assert state.log.aux["at"].tolist() == [0.0, 0.0, 0.0]
    v = directions(GAUSSIAN, 0, 2, x)
    update = jit(lambda s: opt.update(None, s, x, value_fn=with_aux, value=value))
    state = update(state)[1]
    expected = np.arange(3.0) + (0.0 if at_params else 0.1 * v[0])
    np.testing.assert_allclose(state.log.aux["at"], expected, rtol=1e-6, atol=1e-7)


def test_aux_is_dropped_without_aux_like_and_checked_with_it():
    x = jnp.arange(3.0)
    opt = zojax.two_point(0.1, 2, key=KEY, has_aux=True)
    g, state = jit(lambda s: opt.update(None, s, x, value_fn=with_aux))(opt.init(x))
    assert state.log.aux is None
    v = directions(GAUSSIAN, 0, 2, x)
    f = lambda z: np.sum(z**2)
    expected = formula("forward", f, np.arange(3.0), 0.1, v)
    np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-4)
    for wrong in (jnp.zeros(3), {"at": jnp.zeros(2)}, {"at": jnp.zeros(3, jnp.int32)}):
        opt = zojax.two_point(0.1, 2, key=KEY, has_aux=True, aux_like=wrong)
        with pytest.raises(ValueError, match="aux_like must have the structure"):
            jax.eval_shape(
                lambda s, opt=opt: opt.update(None, s, x, value_fn=with_aux),
                opt.init(x),
            )
    with pytest.raises(ValueError, match="aux_like needs has_aux=True"):
        zojax.two_point(0.1, 2, key=KEY, aux_like=jnp.zeros(3))


X = np.array([0.5, -1.0, 2.0])
MU, NUM = 0.25, 6


@functools.cache
def driven(difference):
    """An estimator at X and its jitted update, the objective driven by extra args.

    Losses are multiples of 1/16, exact in float32 with or without an offset of 10^6;
    beyond ``limit`` along the first coordinate the objective answers ``bad``.
    """

    def value_fn(z, scale, offset, limit, bad):
        loss = scale * jnp.round(16 * jnp.sum(z**2)) / 16 + offset
        return jnp.where(z[0] > limit, bad, loss)

    opt = zojax.two_point(MU, NUM, key=KEY, difference=difference)
    x = jnp.asarray(X, jnp.float32)

    @jit
    def update(state, kwargs):
        return opt.update(None, state, x, value_fn=value_fn, **kwargs)

    usual = {"scale": 1.0, "offset": 0.0, "limit": np.inf, "bad": np.nan}
    return opt.init(x), lambda state, **kwargs: update(state, usual | kwargs)


def rounded(z):
    return np.round(16 * np.sum(np.asarray(z, np.float32) ** 2)) / 16


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_log_labels_value_at_params_and_query_mean_apart(difference):
    """value_at_params is f(params); query_mean that of the perturbed points alone."""
    state, update = driven(difference)
    g, state = update(state)
    v = directions(GAUSSIAN, 0, NUM, jnp.zeros(3))
    expected = formula(difference, rounded, X, MU, v)
    np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-5)
    sides = (1, -1) if difference == "central" else (1,)
    queries = [rounded(X + s * MU * row) for s in sides for row in v]
    np.testing.assert_allclose(state.log.query_mean, np.mean(queries), rtol=1e-5)
    assert abs(np.mean(queries) - 5.25) > 0.1
    if difference == "forward":
        assert float(state.log.value_at_params) == 5.25
    else:
        assert state.log.value_at_params is None
    assert int(state.log.num_nonfinite) == 0


# -- values that are not finite, constant, offset or coarse ----------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_some_bad_queries_are_left_out_and_counted(difference, bad):
    """The estimate is the formula over the directions that remain."""
    state, update = driven(difference)
    v = directions(GAUSSIAN, 0, NUM, jnp.zeros(3))
    limit = float(X[0] + 0.9 * MU)
    bad_plus = X[0] + MU * v[:, 0] > limit
    bad_minus = X[0] - MU * v[:, 0] > limit
    assert 0 < bad_plus.sum() < NUM - 1
    assert bad_minus.sum() > 0
    if difference == "central":
        keep, count = ~bad_plus & ~bad_minus, bad_plus.sum() + bad_minus.sum()
    else:
        keep, count = ~bad_plus, bad_plus.sum()
    g, state = update(state, limit=limit, bad=bad)
    assert int(state.log.num_nonfinite) == count
    expected = formula(difference, rounded, X, MU, v[keep])
    np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-5)
    # Over all steps: in the second one every point is beyond the limit.
    queries = 2 * NUM if difference == "central" else NUM
    state = update(state, limit=-np.inf, bad=bad)[1]
    total = count + queries + (difference == "forward")
    assert int(state.log.num_nonfinite) == total


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_all_bad_queries_give_zero_and_keep_the_log(difference):
    state, update = driven(difference)
    good = update(state)[1]
    g, state = update(good, scale=np.nan)
    assert g.tolist() == [0.0] * 3
    queries = 2 * NUM if difference == "central" else NUM
    assert int(state.log.num_nonfinite) == queries + (difference == "forward")
    assert float(state.log.query_mean) == float(good.log.query_mean) != 0
    if difference == "forward":
        assert float(state.log.value_at_params) == 5.25


def test_a_bad_value_at_params_gives_zero_and_is_counted():
    """With f(params) = nan there is no forward difference at all."""
    opt = zojax.two_point(0.5, 3, key=KEY)
    x = jnp.ones(2)
    f = lambda z: jnp.sum(z**2)
    update = jit(lambda s, value: opt.update(None, s, x, value_fn=f, value=value))
    for value in (np.nan, np.inf):
        g, state = update(opt.init(x), value)
        assert g.tolist() == [0.0, 0.0]
        assert int(state.log.num_nonfinite) == 1
        assert float(state.log.value_at_params) == 0.0


def test_huge_finite_values_leave_the_estimate_finite():
    """Sums beyond float32 saturate: neither nan nor inf comes out."""
    opt = zojax.two_point(1e-3, 4, key=KEY)
    x = jnp.zeros(6)
    state = opt.init(x)

    def one(count, scale):
        at = state._replace(count=count)
        f = lambda z, scale: scale * jnp.sum(z)
        return opt.update(None, at, x, value_fn=f, scale=scale)[0]

    counts, scales = jnp.arange(2000), jnp.geomspace(1e36, 3e38, 2000)
    assert np.isfinite(jit(jax.vmap(one))(counts, scales)).all()


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_constant_loss_gives_exactly_zero(difference):
    state, update = driven(difference)
    for constant in (0.0, 2.7, 1e6 + 0.1):
        assert update(state, scale=0.0, offset=constant)[0].tolist() == [0.0] * 3


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_an_offset_of_the_loss_cancels(difference):
    """Multiples of 1/16 are exact beside 10^6: nothing may be lost."""
    state, update = driven(difference)
    v = directions(GAUSSIAN, 0, NUM, jnp.zeros(3))
    expected = formula(difference, rounded, X, MU, v)
    assert np.linalg.norm(expected) > 1
    shifted = update(state, offset=1e6)[0]
    np.testing.assert_allclose(shifted, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_bfloat16_loss_is_upcast_before_differencing(difference):
    """The estimate is the float64 formula on the quantised losses (about 2.0)."""
    x, mu, num = np.array([0.5, -0.25, 0.5]), 0.125, 6
    v = directions(GAUSSIAN, 0, num, jnp.zeros(3))

    def loss(z):
        # Under jit XLA may skip a cast to bfloat16 and back; it keeps this rounding.
        rounded_loss = jax.lax.reduce_precision(2.0 + jnp.sum(z**3), 8, 7)
        return rounded_loss.astype(jnp.bfloat16)

    compiled = jit(loss)
    quantised = lambda z: float(compiled(jnp.asarray(z, jnp.float32)))
    opt = zojax.two_point(mu, num, key=KEY, difference=difference)
    params = jnp.asarray(x, jnp.float32)
    g = jit(lambda s: opt.update(None, s, params, value_fn=loss)[0])(opt.init(params))
    expected = formula(difference, quantised, x, mu, v)
    # Any step in bfloat16 would leave relative errors of 2^-9 = 2e-3.
    np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_params_keep_a_float32_loss():
    """Values differ by far less than a bfloat16 near 2.0 can tell (2^-6)."""
    num, mu = 4, 2.0**-6
    params = jnp.array([0.0, 0.0], jnp.bfloat16)
    v = directions(GAUSSIAN, 0, num, params)
    f = lambda z: 2.0 + 1e-3 * jnp.sum(z.astype(jnp.float32))
    opt = zojax.two_point(mu, num, key=KEY)
    update = jit(lambda s: opt.update(None, s, params, value_fn=f))
    g, state = update(opt.init(params))
    assert g.dtype == jnp.bfloat16
    assert state.log.value_at_params.dtype == jnp.float32
    # Around 0 a power of two times v is exact in bfloat16.
    expected = 1e-3 * v.sum(axis=1) @ v / num
    assert np.abs(expected).max() > 1e-4
    # float32 values near 2 resolve 1.2e-7 / mu = 8e-6, the cast of g 2^-9.
    np.testing.assert_allclose(flat(g), expected, rtol=2**-8, atol=2e-5)


# -- presets ---------------------------------------------------------------------------


def test_mezo_is_the_hand_written_step():
    """theta - lr (l+ - l-) / (2 mu) z, z redrawn from the step's key."""
    lr, mu = 0.1, 1e-2
    f = lambda x: x[0] ** 2 + 3 * x[1] ** 2 + x[0] * x[2]
    with jax.enable_x64(True):
        opt = zojax.mezo(lr, mu, key=KEY)
        x = jnp.array([1.0, -1.0, 0.5])
        state, theta = opt.init(x), np.array([1.0, -1.0, 0.5])
        update = jit(lambda s, x: opt.update(None, s, x, value_fn=f))
        for count in range(4):
            z = directions(GAUSSIAN, count, 1, x)[0]
            projected_grad = (f(theta + mu * z) - f(theta - mu * z)) / (2 * mu)
            theta = theta - lr * projected_grad * z
            updates, state = update(state, x)
            x = optax.apply_updates(x, updates)
            np.testing.assert_allclose(x, theta, rtol=1e-6)


@pytest.mark.parametrize("num", [1, 3])
def test_spsa_is_spalls_formula(num):
    """g_j = [y(theta + c v) - y(theta - c v)] / (2 c v_j), gains by schedule."""
    gain = lambda count: 0.1 / (count + 1.0) ** 0.602
    width = lambda count: 0.2 / (count + 1.0) ** 0.101
    f = lambda x: x[0] ** 4 + (x[1] - x[2]) ** 2 + x[2]
    with jax.enable_x64(True):
        opt = zojax.spsa(gain, width, key=KEY, num_directions=num)
        x = jnp.array([1.0, -1.0, 0.5])
        state, theta = opt.init(x), np.array([1.0, -1.0, 0.5])
        update = jit(lambda s, x: opt.update(None, s, x, value_fn=f))
        for count in range(3):
            rows = directions(RADEMACHER, count, num, x)
            assert set(np.abs(rows).ravel()) == {1.0}
            c = width(count)
            terms = [(f(theta + c * v) - f(theta - c * v)) / (2 * c * v) for v in rows]
            theta = theta - gain(count) * np.mean(terms, axis=0)
            updates, state = update(state, x)
            x = optax.apply_updates(x, updates)
            np.testing.assert_allclose(x, theta, rtol=1e-9)


# -- keys ------------------------------------------------------------------------------


def test_keys_of_every_accepted_kind_name_one_stream():
    """An int seed, a numpy int, a legacy key and a typed key are the same key."""
    kinds = (0, np.int64(0), jax.random.PRNGKey(0), jax.random.key(0))
    x = jnp.ones(2)
    states = [zojax.two_point(0.1, 2, key=k).init(x) for k in kinds]
    for state in states:
        assert state.key.dtype == jnp.uint32
        assert state.key.tolist() == [0, 0]
    other = zojax.two_point(0.1, 2, key=1).init(x)
    assert other.key.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (None, "None"),
        (True, "True"),
        (0.5, "0.5"),
        (jax.random.key(0, impl="rbg"), "rbg"),
        (jax.random.split(jax.random.key(0)), r"shape \(2,\)"),
        (np.zeros(3, np.uint32), r"uint32 with shape \(3,\)"),
        (np.zeros(2, np.float32), r"float32 with shape \(2,\)"),
    ],
)
def test_wrong_keys_are_refused(key, said):
    with pytest.raises(
        ValueError, match=rf"key must be a single threefry2x32 key.*got.*{said}"
    ):
        zojax.two_point(0.1, 2, key=key)


def test_key_is_required():
    with pytest.raises(TypeError, match="key"):
        zojax.two_point(0.1, 2)


# -- arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"smoothing": 0}, r"smoothing must be a number > 0, .*schedule, got 0$"),
        ({"smoothing": -1.0}, r"smoothing must be a number > 0, .*got -1.0$"),
        ({"smoothing": np.nan}, r"smoothing must be a number > 0, .*got nan$"),
        ({"smoothing": np.inf}, r"smoothing must be a number > 0, .*got inf$"),
        ({"smoothing": True}, r"smoothing must be a number > 0, .*got True$"),
        ({"smoothing": None}, r"smoothing must be a number > 0, .*got None$"),
        ({"smoothing": "0.1"}, r"smoothing must be a number > 0, .*got '0.1'$"),
        ({"smoothing": np.ones(2)}, r"smoothing must be a number > 0, .*got array"),
        ({"num_directions": 0}, r"num_directions must be an int >= 1, got 0$"),
        ({"num_directions": 1.5}, r"num_directions must be an int >= 1, got 1.5$"),
        ({"num_directions": True}, r"num_directions must be an int >= 1, got True$"),
        ({"clip": 0.0}, r"clip must be a number > 0, or a schedule, got 0.0$"),
        ({"chunk_size": 0}, r"chunk_size must be an int >= 1 or None, got 0$"),
        ({"chunk_size": 2.0}, r"chunk_size must be an int >= 1 or None, got 2.0$"),
        ({"difference": "both"}, r"difference must be one of \('forward'.*got 'both'$"),
        ({"sampler": "gaussian"}, r"sampler must be a zojax.Sampler.*got 'gaussian'$"),
        (
            {"difference": "leave_one_out", "num_directions": 1},
            r"num_directions must be an int >= 2 with difference='leave_one_out', got",
        ),
        (
            {"difference": "mean", "num_directions": 1},
            r"num_directions must be an int >= 2 with difference='mean', got 1",
        ),
        (
            {"sampler": perturbations.simplex(), "num_directions": 3},
            r"num_directions must be a power of two >= 2 with simplex\(\), got 3",
        ),
    ],
)
def test_bad_arguments_are_refused_in_the_factory(arguments, match):
    """The message names the argument, the value and what is accepted."""
    with pytest.raises(ValueError, match=match):
        zojax.two_point(
            **({"smoothing": 0.1, "num_directions": 2, "key": 0} | arguments)
        )


def test_numpy_numbers_are_accepted():
    zojax.two_point(np.float32(0.1), np.int32(2), key=0, chunk_size=np.int64(1))
    zojax.two_point(jnp.float32(0.1), 2, key=0)


# -- value_fn --------------------------------------------------------------------------


def needs_batch(x, batch):
    return jnp.sum((x - batch) ** 2)


def takes_anything(x, **kwargs):
    return jnp.sum(x) + len(kwargs)


def positional_data(x, batch, /):
    return jnp.sum(x * batch)


def no_params(*, x):
    return jnp.sum(x)


@pytest.mark.parametrize(
    ("value_fn", "match"),
    [
        (takes_anything, r"value_fn \(x, \*\*kwargs\) takes \*\*kwargs"),
        (needs_batch, r"value_fn \(x, batch\) needs \['batch'\].*given \['scale'\]"),
        (positional_data, r"value_fn \(x, batch, /\) takes \['batch'\] by position"),
        (no_params, r"value_fn .* must take params as first argument"),
        (lambda: 0.0, r"value_fn .* must take params as first argument"),
        (3.0, r"value_fn must be callable, got 3.0"),
        (lambda x: x, r"value_fn must return a real scalar, got shape \(2,\)"),
        (lambda x: (x[0], x), r"got a tuple: pass has_aux=True"),
        (lambda x: 1j * x[0], r"value_fn must return a real scalar.*complex64"),
    ],
)
def test_a_value_fn_that_cannot_be_bound_is_refused(value_fn, match):
    opt = zojax.two_point(0.1, 2, key=0)
    x = jnp.ones(2)
    with pytest.raises(ValueError, match=match):
        opt.update(None, opt.init(x), x, value_fn=value_fn, scale=1.0)


def test_value_fn_without_an_aux_is_refused_with_has_aux():
    opt = zojax.two_point(0.1, 2, key=0, has_aux=True)
    x = jnp.ones(2)
    with pytest.raises(
        ValueError, match=r"must return \(value, aux\) with has_aux=True"
    ):
        opt.update(None, opt.init(x), x, value_fn=jnp.sum)


def test_value_must_be_a_scalar():
    """A vector would broadcast against the K query values: an error, not silence."""
    opt = zojax.two_point(0.1, 2, key=0)
    x = jnp.ones(2)
    update = lambda s: opt.update(None, s, x, value_fn=jnp.sum, value=jnp.ones(2))
    with pytest.raises(ValueError, match="value"):
        jax.eval_shape(update, opt.init(x))


def test_params_are_needed():
    opt = zojax.two_point(0.1, 2, key=0)
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="zojax estimators perturb params"):
        opt.update(None, opt.init(x), None, value_fn=jnp.sum)
    with pytest.raises(ValueError, match="zojax estimators perturb params"):
        opt.init(None)
    with pytest.raises(ValueError, match=r"update needs value_fn=.* or values="):
        opt.update(None, opt.init(x), x)


def test_value_fn_gets_the_extra_args_it_names_and_no_others():
    opt = zojax.two_point(0.1, 4, key=KEY)
    x, batch = jnp.ones(2), jnp.array([3.0, -1.0])
    seen = []

    def value_fn(p, batch, weight=2.0, *, scale=1.0):
        seen.append((batch is given["batch"], weight, scale))
        return scale * jnp.sum((p - batch) ** 2)

    given = {"batch": batch, "scale": 0.5, "unknown": object(), "grad": None}
    update = jit(lambda s: opt.update(None, s, x, value_fn=value_fn, **given)[0])
    g = update(opt.init(x))
    assert set(seen) == {(True, 2.0, 0.5)}
    v = directions(GAUSSIAN, 0, 4, x)
    f = lambda z: 0.5 * np.sum((z - np.array([3.0, -1.0])) ** 2)
    expected = formula("forward", f, np.ones(2), 0.1, v)
    np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-4)


def test_positional_only_params_and_jitted_functions_bind():
    opt = zojax.two_point(0.1, 2, key=KEY)
    x, batch = jnp.ones(2), jnp.arange(2.0)

    def f(p, /):
        return jnp.sum(p**2)

    v = directions(GAUSSIAN, 0, 2, x)
    state = opt.init(x)
    g = jit(lambda s: opt.update(None, s, x, value_fn=jax.jit(f))[0])(state)
    expected = formula("forward", lambda z: np.sum(z**2), np.ones(2), 0.1, v)
    np.testing.assert_allclose(g, expected, rtol=1e-4)
    for value_fn in (f, jax.jit(needs_batch)):
        update = lambda s, fn=value_fn: opt.update(None, s, x, value_fn=fn, batch=batch)
        assert jax.eval_shape(update, state)[0].shape == (2,)


def test_incoming_updates_are_ignored():
    opt = zojax.two_point(0.1, 2, key=KEY)
    x = jnp.ones(2)
    update = jit(lambda u, s: opt.update(u, s, x, value_fn=jnp.sum)[0])
    ignored = update(jnp.full(2, jnp.nan), opt.init(x))
    assert ignored.tolist() == update(None, opt.init(x)).tolist()
