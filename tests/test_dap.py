"""DAP against Algorithms 1 and 2 written out in float64, and Monte Carlo."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import perturbations

KEY = 5
GAUSSIAN = perturbations.gaussian()
RADEMACHER = perturbations.rademacher()
SPHERE = perturbations.sphere()
# Compiling takes longer than running here.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def flat(tree):
    """A pytree as one float64 vector, in tree order."""
    return np.concatenate([np.asarray(x, float).ravel() for x in jax.tree.leaves(tree)])


@functools.partial(jit, static_argnums=(0, 3))
def _rows(sampler, count, stage, num, params):
    step_key = jax.random.fold_in(jax.random.key(KEY), count)
    stage_key = jax.random.fold_in(step_key, stage)
    return jax.vmap(lambda k: sampler(stage_key, k, num, params))(jnp.arange(num))


def rows(sampler, count, stage, num, params):
    """The directions of a stage (0: rough, 1: base of the aligned ones)."""
    leaves = jax.tree.leaves(_rows(sampler, count, stage, num, params))
    return np.concatenate([np.asarray(x, float).reshape(num, -1) for x in leaves], 1)


def _along_ones(key, k, num, params):
    ones = jax.tree.map(jnp.ones_like, params)
    return perturbations.aligned(ones)(key, k, num, params)


def xis(count, num, params):
    """The signs xi_k, read off directions that are aligned with a vector of ones."""
    return np.sign(rows(_along_ones, count, 1, num, params).sum(axis=1))


def differences(f, x, mu, v, central=False):
    """Mean of slope * v over the directions whose values are all finite, and their
    number.
    """
    terms = []
    for row in v:
        if central:
            slope = (f(x + mu * row) - f(x - mu * row)) / (2 * mu)
        else:
            slope = (f(x + mu * row) - f(x)) / mu
        if np.isfinite(slope):
            terms.append(slope * row)
    return (np.mean(terms, axis=0) if terms else np.zeros_like(x)), len(terms)


def aligned_rows(base_rows, xi, a, fixed_length=False):
    """Algorithm 1 with delta = 1: project on a . v = xi |a|."""
    if not np.all(np.isfinite(a)) or not np.any(a):
        return base_rows
    norm, d = np.sqrt(a @ a), len(a)
    directions = []
    for x, sign in zip(base_rows, xi, strict=True):
        projected = x - (x @ a) * a / norm**2
        if fixed_length:
            w = projected / np.sqrt(projected @ projected)
            v = sign * np.sqrt(d) * (np.sqrt(1 - 1 / d) * w + a / (norm * np.sqrt(d)))
            np.testing.assert_allclose(v @ v, d, rtol=1e-6)
        else:
            v = projected + sign * a / norm
        np.testing.assert_allclose((v @ a) ** 2, a @ a, rtol=1e-6)
        directions.append(v)
    return np.array(directions)


# -- the algorithms --------------------------------------------------------------------

D = 7
SLOPE = np.sin(np.arange(1.0, D + 1))
HESSIAN = np.cos(np.add.outer(np.arange(D), np.arange(D))) + 2 * np.eye(D)


def quadratic(x):
    return SLOPE @ x + 0.5 * x @ HESSIAN @ x


def value_fn(p):
    x = jnp.concatenate([p["a"].ravel(), p["b"]])
    return jnp.asarray(SLOPE) @ x + 0.5 * x @ (jnp.asarray(HESSIAN) @ x)


def start():
    return {"a": jnp.linspace(-1.0, 1.0, 4).reshape(2, 2), "b": jnp.ones(3)}


def descend(p, g):
    return jax.tree.map(lambda p, g: p - 0.02 * g, p, g)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"combine": "average"},
        {"difference": "central", "combine": "average", "chunk_size": 2},
        {"fixed_length": True, "chunk_size": 1},
    ],
    ids=str,
)
def test_two_stages_equal_algorithm_2(kwargs):
    """Two rough directions of six, a scheduled mu, over steps at which params move."""
    smoothing = lambda count: 0.2 / (1.0 + count)
    central = kwargs.get("difference") == "central"
    with jax.enable_x64(True):
        opt = zojax.dap(smoothing, 6, key=KEY, split=1 / 3, **kwargs)
        p = start()
        state = opt.init(p)
        update = jit(lambda s, p: opt.update(None, s, p, value_fn=value_fn))
        for count in range(3):
            x, mu = flat(p), smoothing(count)
            v = rows(SPHERE, count, 0, 2, p)
            rough, _ = differences(quadratic, x, mu, v, central)
            base, xi = rows(GAUSSIAN, count, 1, 4, p), xis(count, 4, p)
            v = aligned_rows(base, xi, rough, kwargs.get("fixed_length", False))
            expected, _ = differences(quadratic, x, mu, v, central)
            if kwargs.get("combine") == "average":
                expected = (2 * rough + 4 * expected) / 6
            g, state = update(state, p)
            assert jax.tree.structure(g) == jax.tree.structure(p)
            # Directions are normalised with sums of float32 noise.
            np.testing.assert_allclose(flat(g), expected, rtol=1e-6, atol=1e-6)
            p = descend(p, g)
        assert state.guide is None


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"combine": "average", "chunk_size": 1},
        {"difference": "central", "fixed_length": True, "chunk_size": 2},
    ],
    ids=str,
)
def test_a_replayed_guide_equals_algorithm_2(kwargs):
    """Nothing of the guide is held; slices draw noise of their own; b is frozen."""
    stacked, mask = {"a": True, "b": False}, {"a": True, "b": False}
    lazily = lambda base: perturbations.restrict(
        perturbations.lazy(base, stacked), mask
    )
    sampler, base = lazily(RADEMACHER), lazily(GAUSSIAN)
    on_slice = lambda x: np.concatenate([x, np.ones(3)])
    lazy_fn = lambda p: value_fn(zojax.materialize(p))
    central = kwargs.get("difference") == "central"
    with jax.enable_x64(True):
        opt = zojax.dap(
            0.2,
            6,
            key=KEY,
            split=1 / 3,
            sampler=sampler,
            base=base,
            storage="replay",
            **kwargs,
        )
        p = start()
        state = opt.init(p)
        update = jit(lambda s, p: opt.update(None, s, p, value_fn=lazy_fn))
        for count in range(2):
            f, x = lambda x: quadratic(on_slice(x)), flat(p["a"])
            v = rows(sampler, count, 0, 2, p)
            rough, _ = differences(f, x, 0.2, v, central)
            drawn, xi = rows(base, count, 1, 4, p), xis(count, 4, p["a"])
            v = aligned_rows(drawn, xi, rough, kwargs.get("fixed_length", False))
            expected, _ = differences(f, x, 0.2, v, central)
            if kwargs.get("combine") == "average":
                expected = (2 * rough + 4 * expected) / 6
            g, state = update(state, p)
            np.testing.assert_allclose(flat(g["a"]), expected, rtol=1e-6, atol=1e-6)
            assert not g["b"].any()
            p = {"a": p["a"] - 0.02 * g["a"], "b": p["b"]}


def test_a_replayed_guide_that_is_not_usable_leaves_base_directions():
    """No finite rough value: isotropic directions, as with a guide that is held."""
    drawn = perturbations.lazy(GAUSSIAN)
    held = perturbations.from_rows(drawn.row)
    f = lambda z: jnp.where(jnp.sum(z) > 1.0, jnp.nan, jnp.sum(z))
    x = jnp.ones(4) * 0.249
    found = {}
    for storage, sampler in (("sums", held), ("replay", drawn)):
        opt = zojax.dap(
            0.05, 4, key=1, sampler=sampler, base=sampler, storage=storage, split=0.25
        )
        update = jit(
            lambda s, o=opt: o.update(
                None, s, x, value_fn=lambda z: f(zojax.materialize(z))
            )
        )
        state, found[storage] = opt.init(x), []
        for _ in range(8):
            g, state = update(state)
            found[storage].append(np.asarray(g))
    assert int(state.log.num_nonfinite) > 4
    np.testing.assert_allclose(found["replay"], found["sums"], rtol=1e-4, atol=1e-5)


def test_replayed_directions_can_be_held():
    """Each is aligned with the guide and is what the estimator asks along."""
    from zojax.perturbations._aligned_replay import replay_aligned, replayed_sampler

    params = {"a": jnp.zeros((5, 3), jnp.bfloat16), "b": jnp.zeros(4)}
    sampler = perturbations.lazy(GAUSSIAN, {"a": True, "b": False})
    rough_key, key = jax.random.split(jax.random.key(3))
    w = jnp.array([3e20, -1e20, 2e20])  # squares overflow float32
    directions = replay_aligned(w, sampler, rough_key, sampler, key, 2, params)
    rough = zojax.Directions(sampler, rough_key, 3)
    a = flat(zojax.combine(w / 1e20, params, rough))
    for k in range(2):
        v = replayed_sampler(directions)(key, k, 2, params)
        assert jax.tree.map(lambda x: x.dtype, v) == jax.tree.map(
            lambda x: x.dtype, params
        )
        along = flat(v) @ a / np.linalg.norm(a)
        np.testing.assert_allclose(abs(along), 1, atol=0.03)  # v is rounded: bfloat16


def test_a_replayed_guide_costs_no_vector():
    """Compiled temporary bytes: those of one slice or so, beside the update."""
    params = jax.ShapeDtypeStruct((16, 128, 128), jnp.float32)
    x = jnp.ones((4, 128))

    def f(layers):
        body = lambda x, layer: (jnp.tanh(x @ zojax.materialize(layer)), None)
        return jnp.mean(jax.lax.scan(body, x, layers)[0] ** 2)

    lazily = perturbations.lazy(RADEMACHER, True)
    held = perturbations.from_rows(lazily.row)
    copies = {}
    for storage, sampler in (("sums", held), ("replay", lazily)):
        opt = zojax.dap(
            1e-3,
            8,
            key=0,
            sampler=sampler,
            base=sampler,
            storage=storage,
            chunk_size=1,
        )

        def step(params, state, opt=opt):
            g, state = opt.update(None, state, params, value_fn=f)
            return jax.tree.map(lambda p, g: p - 1e-3 * g, params, g), state

        state = jax.eval_shape(opt.init, params)
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state).compile()
        found = compiled.memory_analysis().temp_size_in_bytes
        copies[storage] = found / (4 * params.size)
    assert copies["replay"] < 1.3
    assert copies["sums"] > 2.5


def recorder():
    """An objective of R^D that records its points, with a float64 callback."""
    points = []

    def simulator(x):
        points.append(np.array(x, float))
        return np.asarray(quadratic(np.asarray(x, float)), x.dtype)

    def recording(x):
        shape = jax.ShapeDtypeStruct((), x.dtype)
        return jax.pure_callback(simulator, shape, x, vmap_method="sequential")

    return recording, points


@pytest.mark.parametrize(
    ("num", "split", "num_rough"), [(8, 0.25, 2), (5, 0.5, 2), (7, 0.5, 4), (3, 0.4, 1)]
)
def test_what_the_objective_is_asked(num, split, num_rough):
    """round(split K) points along the rough rows, the rest with (v . a)^2 = |a|^2."""
    mu = 1e-2
    with jax.enable_x64(True):
        value_fn, points = recorder()
        opt = zojax.dap(mu, num, key=KEY, split=split)
        x = jnp.linspace(-1.0, 1.0, D)
        update = jit(lambda s: opt.update(None, s, x, value_fn=value_fn))
        jax.block_until_ready(update(opt.init(x)))
        x = np.asarray(x)
        v = rows(SPHERE, 0, 0, num_rough, jnp.asarray(x))
        a, _ = differences(quadratic, x, mu, v)
    assert len(points) == num + 1
    asked = (np.array(points) - x) / mu
    is_base = np.all(np.abs(asked) < 1e-9, axis=1)
    is_rough = [np.any(np.max(np.abs(v - u), axis=1) < 1e-6) for u in asked]
    assert is_base.sum() == 1
    assert sum(is_rough) == num_rough
    along = asked[~is_base & ~np.array(is_rough)] @ a
    assert len(along) == num - num_rough
    np.testing.assert_allclose(along**2, a @ a, rtol=1e-6)


@pytest.mark.parametrize("fixed_length", [False, True])
def test_guide_updates_equals_algorithm_1(fixed_length):
    """All K directions are aligned with the incoming updates, whatever their scale."""
    num, mu = 3, 0.1
    with jax.enable_x64(True):
        opt = zojax.dap(mu, num, key=KEY, guide="updates", fixed_length=fixed_length)
        p = start()
        a = np.cos(np.arange(2.0, D + 2))
        state = opt.init(p)
        update = jit(lambda u, s: opt.update(u, s, p, value_fn=value_fn))
        base, xi = rows(GAUSSIAN, 0, 1, num, p), xis(0, num, p)
        x = flat(p)
        for scale in (1.0, -1e-30, 1e30, 0.0, np.nan, np.inf):
            guide = scale * a
            tree = {
                "a": jnp.asarray(guide[:4].reshape(2, 2)),
                "b": jnp.asarray(guide[4:]),
            }
            # A guide that is zero or not finite leaves the directions isotropic.
            usable = np.isfinite(scale) and scale != 0
            unit = np.sign(scale) * a if usable else np.zeros(D)
            if fixed_length and not usable:
                lengths = np.sqrt(np.sum(base**2, axis=1, keepdims=True))
                v = np.sqrt(D) * xi[:, None] * base / lengths
            else:
                v = aligned_rows(base, xi, unit, fixed_length)
            expected, _ = differences(quadratic, x, mu, v)
            g, _ = update(tree, state)
            np.testing.assert_allclose(flat(g), expected, rtol=1e-6, atol=1e-6)


def test_a_rough_estimator_before_dap_in_a_chain():
    """chain(two_point, dap(guide="updates")) is Algorithm 2 by composition."""
    mu = 0.1
    with jax.enable_x64(True):
        opt = optax.chain(
            zojax.two_point(mu, 2, key=KEY, sampler=RADEMACHER),
            zojax.dap(mu, 3, key=KEY, guide="updates"),
        )
        p = start()
        state = opt.init(p)
        update = jit(lambda s, p: opt.update(None, s, p, value_fn=value_fn))
        for count in range(2):
            x = flat(p)
            step_key = jax.random.fold_in(jax.random.key(KEY), count)
            v = np.stack([flat(RADEMACHER(step_key, k, 2, p)) for k in range(2)])
            rough, _ = differences(quadratic, x, mu, v)
            base, xi = rows(GAUSSIAN, count, 1, 3, p), xis(count, 3, p)
            v = aligned_rows(base, xi, rough)
            expected, _ = differences(quadratic, x, mu, v)
            g, state = update(state, p)
            np.testing.assert_allclose(flat(g), expected, rtol=1e-6, atol=1e-6)
            p = descend(p, g)


def test_guide_average_is_a_recursion_of_estimates():
    """a <- decay a + (1 - decay) g; the first step is isotropic, all K are aligned."""
    num, mu, decay = 3, 0.1, lambda count: 0.6 + 0.1 * count
    with jax.enable_x64(True):
        opt = zojax.dap(mu, num, key=KEY, guide="average", decay=decay)
        p = start()
        state, a = opt.init(p), np.zeros(D)
        assert flat(state.guide).tolist() == [0.0] * D
        update = jit(lambda s, p: opt.update(None, s, p, value_fn=value_fn))
        for count in range(3):
            base, xi = rows(GAUSSIAN, count, 1, num, p), xis(count, num, p)
            v = aligned_rows(base, xi, a)
            assert (v is base) == (count == 0)
            expected, _ = differences(quadratic, flat(p), mu, v)
            g, state = update(state, p)
            np.testing.assert_allclose(flat(g), expected, rtol=1e-6, atol=1e-6)
            beta = decay(count)
            a = beta * a + (1 - beta) * expected
            np.testing.assert_allclose(flat(state.guide), a, rtol=1e-6, atol=1e-6)
            p = descend(p, g)


def test_the_average_guide_of_bfloat16_params_is_float32():
    params = jnp.ones(3, jnp.bfloat16)
    opt = zojax.dap(0.125, 2, key=KEY, guide="average")
    f = lambda x: jnp.sum(x.astype(jnp.float32))
    update = jit(lambda s: opt.update(None, s, params, value_fn=f))
    g, state = update(opt.init(params))
    assert g.dtype == jnp.bfloat16
    assert state.guide.dtype == jnp.float32
    assert not (state.guide.astype(jnp.bfloat16) == state.guide).all()


# -- expectation -----------------------------------------------------------------------

GRADIENT = np.array([1.0, -2.0, 0.5, 3.0])


@pytest.mark.parametrize(
    "kwargs",
    [
        {"guide": "rough"},
        {"guide": "rough", "combine": "average", "split": 0.25},
        {"guide": "rough", "difference": "central"},
        {"guide": "rough", "fixed_length": True},
        {"guide": "updates"},
        {"guide": "updates", "fixed_length": True, "base": SPHERE},
        {"guide": "average"},
    ],
    ids=lambda kwargs: "-".join(str(v) for v in kwargs.values() if not callable(v)),
)
def test_unbiased(kwargs):
    """E g = grad f on a linear f; 5 standard errors per coordinate, 20,000 samples."""
    opt = zojax.dap(0.5, 4, key=KEY, **kwargs)
    x = jnp.ones(4)
    f = lambda z: jnp.dot(jnp.asarray(GRADIENT, z.dtype), z) + 3.0
    state = opt.init(x)
    guide = jnp.array([1.0, 1.0, 0.0, -0.5])  # neither along nor against the gradient
    if kwargs["guide"] == "average":
        state = state._replace(guide=guide)

    def one(count):
        at = state._replace(count=count)
        return opt.update(guide, at, x, value_fn=f)[0]

    samples = np.asarray(jit(jax.vmap(one))(jnp.arange(20_000)), float)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    gap = np.abs(samples.mean(axis=0) - GRADIENT)
    assert np.all(gap < 5 * error), (gap, error)
    assert np.all(error < 0.1)


def test_the_exact_gradient_as_a_guide():
    """Along the gradient no error at all; MSE = |g|^2 (d - 1) / K in all.

    5 standard errors, 20,000 samples; the gaussian's own MSE would be (d + 1) / K.
    """
    num, d = 3, 4
    opt = zojax.dap(0.5, num, key=KEY, guide="updates")
    x, state = jnp.ones(d), opt.init(jnp.ones(d))
    f = lambda z: jnp.dot(jnp.asarray(GRADIENT, z.dtype), z)

    def one(count):
        updates = jnp.asarray(GRADIENT, jnp.float32)
        return opt.update(updates, state._replace(count=count), x, value_fn=f)[0]

    samples = np.asarray(jit(jax.vmap(one))(jnp.arange(20_000)), float)
    square = GRADIENT @ GRADIENT
    np.testing.assert_allclose(samples @ GRADIENT, square, rtol=1e-4)
    errors = np.sum((samples - GRADIENT) ** 2, axis=1)
    standard_error = errors.std(ddof=1) / np.sqrt(len(errors))
    expected = square * (d - 1) / num
    assert abs(errors.mean() - expected) < 5 * standard_error
    assert standard_error < 0.02 * expected


# -- queries ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "value", "expected"),
    [
        ({}, None, 7),
        ({"combine": "average", "chunk_size": 2}, None, 7),
        ({}, 5.0, 6),
        ({"difference": "central"}, None, 12),
        ({"guide": "updates"}, None, 7),
        ({"guide": "average", "chunk_size": 1}, 5.0, 6),
    ],
    ids=str,
)
def test_number_of_calls(kwargs, value, expected):
    """K + 1, K with value=, 2K for central differences, both stages together."""
    value_fn, points = recorder()
    opt = zojax.dap(0.1, 6, key=KEY, sampler=RADEMACHER, base=RADEMACHER, **kwargs)
    x = jnp.arange(float(D))

    def update(state):
        return opt.update(jnp.ones(D), state, x, value_fn=value_fn, value=value)

    _, state = jax.block_until_ready(jit(update)(opt.init(x)))
    assert len(points) == expected
    at_params = [(point == np.arange(D)).all() for point in points]
    central = kwargs.get("difference") == "central"
    assert sum(at_params) == (0 if central or value is not None else 1)
    queries = [
        quadratic(p) for p, base in zip(points, at_params, strict=True) if not base
    ]
    np.testing.assert_allclose(state.log.query_mean, np.mean(queries), rtol=1e-5)
    if central:
        assert state.log.value_at_params is None
    else:
        base = value if value is not None else quadratic(np.arange(float(D)))
        np.testing.assert_allclose(state.log.value_at_params, base, rtol=1e-6)


def test_aux_is_from_params_or_else_from_the_first_rough_point():
    x = jnp.arange(3.0)
    f = lambda x: (jnp.sum(x**2), x)
    opt = zojax.dap(0.1, 4, key=KEY, has_aux=True, aux_like=x)
    update = jit(lambda s, **kw: opt.update(None, s, x, value_fn=f, **kw)[1])
    assert update(opt.init(x)).log.aux.tolist() == [0.0, 1.0, 2.0]
    first = np.arange(3.0) + 0.1 * rows(SPHERE, 0, 0, 2, x)[0]
    aux = update(opt.init(x), value=5.0).log.aux
    np.testing.assert_allclose(aux, first, rtol=1e-6, atol=1e-7)


# -- values that are not finite, frozen leaves -----------------------------------------


@pytest.mark.parametrize("combine", ["refined", "average"])
def test_bad_values_are_left_out_of_both_stages(combine):
    """Each stage averages over what is there; the average weighs stages by it."""
    num, mu = 12, 0.25
    x = jnp.array([0.5, -1.0, 2.0])
    opt = zojax.dap(mu, num, key=KEY, split=1 / 3, combine=combine)
    v = rows(SPHERE, 0, 0, 4, x)
    limit = 0.5 + 0.4 * mu

    def f(z, limit):
        return jnp.where(z[0] > limit, jnp.nan, jnp.sum(z**2) + z[0])

    def g(z):
        return np.nan if z[0] > limit else np.sum(z**2) + z[0]

    update = jit(lambda s, limit: opt.update(None, s, x, value_fn=f, limit=limit))
    at = np.asarray(x, float)
    rough, n_rough = differences(g, at, mu, v)
    v = aligned_rows(rows(GAUSSIAN, 0, 1, 8, x), xis(0, 8, x), rough)
    expected, n_refined = differences(g, at, mu, v)
    assert 0 < n_rough < 4
    assert 0 < n_refined < 8
    assert 2 * n_rough != n_refined  # so that weights by stage size would differ
    if combine == "average":
        expected = (n_rough * rough + n_refined * expected) / (n_rough + n_refined)
    estimate, state = update(opt.init(x), limit)
    np.testing.assert_allclose(estimate, expected, rtol=1e-4, atol=1e-5)
    assert int(state.log.num_nonfinite) == num - n_rough - n_refined
    # Nothing finite at all: zero, and 13 more of them.
    estimate, after = update(state, -jnp.inf)
    assert estimate.tolist() == [0.0] * 3
    assert int(after.log.num_nonfinite - state.log.num_nonfinite) == num + 1


def test_bad_values_never_enter_the_average_guide():
    """nan, inf and sums beyond float32 leave the guide finite."""
    x = jnp.zeros(6)
    opt = zojax.dap(1e-3, 4, key=KEY, guide="average", decay=0.5)
    f = lambda z, scale: scale * jnp.sum(z)

    def step(state, scale):
        g, state = opt.update(None, state, x, value_fn=f, scale=scale)
        return state, (g, state.guide)

    bad = jnp.concatenate(
        [jnp.array([jnp.nan, jnp.inf]), jnp.geomspace(1e34, 3e38, 200)]
    )
    scales = jax.vmap(lambda b: jnp.array([1.0, b, b, 1.0]))(bad)
    run = jit(jax.vmap(lambda s: jax.lax.scan(step, opt.init(x), s)[1]))
    g, guides = run(scales)
    assert np.isfinite(g).all()
    assert np.isfinite(guides).all()
    # Nothing was learnt from nan: the guide only decays.
    np.testing.assert_allclose(guides[0, 2], guides[0, 0] / 4, rtol=1e-6)
    assert np.abs(guides[0, 0]).max() > 0.1


def test_constant_loss_gives_exactly_zero():
    """No division by the norm of a zero guide."""
    x = jnp.ones(3)
    for kwargs in (
        {},
        {"combine": "average", "fixed_length": True},
        {"guide": "average"},
    ):
        opt = zojax.dap(0.1, 4, key=KEY, sampler=RADEMACHER, base=RADEMACHER, **kwargs)
        update = jit(
            lambda s, o=opt: o.update(None, s, x, value_fn=lambda _: 1e6 + 0.1)
        )
        state = opt.init(x)
        for _ in range(2):
            g, state = update(state)
            assert g.tolist() == [0.0] * 3


@pytest.mark.parametrize("guide", ["rough", "updates", "average"])
def test_frozen_leaves(guide):
    """Frozen leaves are not perturbed, do not count in d and get a zero gradient."""
    mask = {"head": True, "body": False}
    restrict = perturbations.restrict
    opt = zojax.dap(
        0.1,
        4,
        key=KEY,
        guide=guide,
        combine="average",
        fixed_length=True,
        sampler=restrict(SPHERE, mask),
        base=restrict(GAUSSIAN, mask),
    )
    params = {"head": jnp.array([0.5, -1.0, 2.0]), "body": jnp.full(4, 2.0)}
    f = lambda p: jnp.sum(p["head"] ** 2) * jnp.sum(p["body"])
    a = np.array([1.0, 2.0, -1.0])
    updates = {"head": jnp.asarray(a, jnp.float32), "body": jnp.full(4, jnp.nan)}
    state = opt.init(params)
    if guide == "average":
        assert state.guide["body"] is None
        state = state._replace(guide={"head": updates["head"], "body": None})
    update = jit(lambda s: opt.update(updates, s, params, value_fn=f))
    g, state = update(state)
    assert g["body"].tolist() == [0.0] * 4
    x, h = np.array([0.5, -1.0, 2.0]), lambda z: 8 * np.sum(z**2)
    only = {"head": params["head"], "body": None}
    rough = None
    if guide == "rough":
        rough, _ = differences(h, x, 0.1, rows(SPHERE, 0, 0, 2, only))
        a = rough
    num = 2 if guide == "rough" else 4
    v = aligned_rows(rows(GAUSSIAN, 0, 1, num, only), xis(0, num, only), a, True)
    expected, _ = differences(h, x, 0.1, v)
    if guide == "rough":
        expected = (rough + expected) / 2
    np.testing.assert_allclose(g["head"], expected, rtol=1e-4, atol=1e-4)


def test_sampler_and_base_must_freeze_the_same_leaves():
    mask = {"a": True, "b": False}
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    frozen = perturbations.restrict(GAUSSIAN, mask)
    for kwargs in ({"sampler": frozen}, {"base": frozen}):
        opt = zojax.dap(0.1, 4, key=KEY, **kwargs)
        with pytest.raises(ValueError, match="sampler and base must freeze the same"):
            opt.init(params)


# -- arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"smoothing": -1}, r"smoothing must be a number > 0, .*schedule, got -1$"),
        ({"num_directions": 0}, r"num_directions must be an int >= 1, got 0$"),
        ({"num_directions": 2.0}, r"num_directions must be an int >= 1, got 2.0$"),
        ({"guide": "exact"}, r"guide must be one of \('rough'.*got 'exact'$"),
        ({"combine": "both"}, r"combine must be one of \('refined'.*got 'both'$"),
        ({"difference": "mean"}, r"difference must be one of \('forward'.*got 'mean'$"),
        ({"split": 0.0}, r"split must be a number > 0 and < 1.*got 0.0$"),
        ({"split": 1}, r"split must be a number > 0 and < 1.*got 1$"),
        ({"split": np.nan}, r"split must be a number > 0 and < 1.*got nan$"),
        ({"split": lambda count: 0.5}, r"split must be a number > 0 and < 1.*got <fun"),
        ({"decay": 1.0}, r"decay must be a number >= 0 and < 1.*got 1.0$"),
        ({"decay": -0.1}, r"decay must be a number >= 0 and < 1.*got -0.1$"),
        (
            {"num_directions": 1},
            r"split must leave .*split=0.5 with num_directions=1: 0 rough and 1",
        ),
        (
            {"num_directions": 3, "split": 0.9},
            r"split must leave .*split=0.9 with num_directions=3: 3 rough and 0",
        ),
        ({"sampler": 3}, r"sampler must be a zojax.Sampler.*got 3$"),
        ({"base": 3}, r"base must be a zojax.Sampler.*got 3$"),
        (
            {"storage": "replay"},
            r"sampler must be zojax.perturbations.lazy.*storage=.replay., got",
        ),
        (
            {"storage": "replay", "sampler": perturbations.lazy(GAUSSIAN)},
            r"base must be zojax.perturbations.lazy.*storage=.replay., got",
        ),
        (
            {"storage": "replay", "guide": "average"},
            r"storage must be \"sums\" with guide='average', got",
        ),
        ({"chunk_size": 0}, r"chunk_size must be an int >= 1 or None, got 0$"),
        (
            {"sampler": perturbations.simplex(), "num_directions": 6},
            r"num_directions must be a power of two >= 2 with simplex\(\), got 3",
        ),
        ({"key": None}, r"key must be .*got None$"),
        ({"aux_like": 0.0}, r"aux_like needs has_aux=True"),
    ],
)
def test_bad_arguments_are_refused_in_the_factory(arguments, match):
    with pytest.raises(ValueError, match=match):
        zojax.dap(**({"smoothing": 0.1, "num_directions": 4, "key": 0} | arguments))


def test_guide_updates_needs_updates():
    opt = zojax.dap(0.1, 2, key=0, guide="updates")
    x = jnp.ones(2)
    with pytest.raises(
        ValueError, match='updates must not be None with guide="updates"'
    ):
        opt.update(None, opt.init(x), x, value_fn=jnp.sum)


def test_one_direction_is_enough_without_a_rough_stage():
    zojax.dap(0.1, 1, key=0, guide="updates")
    zojax.dap(0.1, 1, key=0, guide="average")
