"""ZoAR against its definition over lists of pairs, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import _numerics, perturbations
from zojax._estimators import zoar as module

KEY = 11
GAUSSIAN = perturbations.gaussian()
RADEMACHER = perturbations.rademacher()
# Compiling takes longer than running here.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jit, static_argnums=(0, 1, 2))
def _rows(sampler, num_steps, num_directions, params):
    def row(count, k):
        step_key = jax.random.fold_in(jax.random.key(KEY), count)
        return sampler(step_key, k, num_directions, params)

    of_step = jax.vmap(row, (None, 0))
    return jax.vmap(of_step, (0, None))(
        jnp.arange(num_steps), jnp.arange(num_directions)
    )


def directions(sampler, num_steps, num_directions, params):
    """The K x d matrices of the first steps, from the documented keys."""
    return np.asarray(_rows(sampler, num_steps, num_directions, params), float)


def definition(
    f, points, u, mus, *, history_size, symmetric=False, leave_one_out=False
):
    """The estimates of all steps from lists of pairs, as the paper defines them.

    H holds the pairs (u, y) of this step and of the last N; b is the mean of y over H;
    g is the mean over H of (y - b) / mu * u. Values that are not finite are no pairs.
    """
    history, estimates = [], []
    for t, (theta, mu) in enumerate(zip(points, mus, strict=True)):
        pairs = []
        for row in u[t]:
            for side in (row, -row) if symmetric else (row,):
                y = f(t, np.float32(theta) + np.float32(mu) * np.float32(side))
                if np.isfinite(y):
                    pairs.append((y, side, mu))
        history = [*history, pairs][-(history_size + 1) :]
        held = [pair for step in history for pair in step]
        total = np.zeros_like(theta)
        if held:
            b = np.mean([y for y, _, _ in held])
            total = sum(((y - b) / mu_s * side for y, side, mu_s in held), total)
        divisor = len(held) - 1 if leave_one_out else len(held)
        estimates.append(total / max(divisor, 1))
    return np.array(estimates)


# -- the definition, over steps at which params move -----------------------------------

T, K, D = 12, 3, 5
POINTS = np.sin(0.7 * np.arange(T)[:, None] + np.arange(D)).astype(np.float32)
LIMITS = np.full(T, np.inf)
LIMITS[4] = POINTS[4, 0]  # some of the values of step 4 are nan, all of step 7's are
LIMITS[7] = -np.inf
SCHEDULE = lambda count: 0.5 / (1.0 + count) ** 0.5


def objective(t, x):
    """Multiples of 1/16, so that 10^6 can be added without rounding."""
    if x[0] > LIMITS[t]:
        return np.nan
    return np.round(16 * np.sum(np.arange(1.0, D + 1) * np.float64(x) ** 2)) / 16


def value_fn(x, limit, offset):
    quadratic = jnp.sum(jnp.arange(1.0, D + 1) * x**2)
    return jnp.where(x[0] > limit, jnp.nan, jnp.round(16 * quadratic) / 16 + offset)


@functools.cache
def along_the_points(**kwargs):
    """Returns (offset, limits) -> the estimates and states along POINTS."""
    opt = zojax.zoar(SCHEDULE, K, key=KEY, **kwargs)

    @jit
    def run(offset, limits):
        def step(state, now):
            x, limit = now
            extra = {"limit": limit, "offset": offset}
            g, state = opt.update(None, state, x, value_fn=value_fn, **extra)
            return state, (g, state)

        xs = (jnp.asarray(POINTS), limits)
        return jax.lax.scan(step, opt.init(jnp.zeros(D)), xs)[1]

    return lambda offset, limits: run(
        jnp.float32(offset), jnp.asarray(limits, jnp.float32)
    )


def relative_error(g, expected):
    return np.max(
        np.linalg.norm(g - expected, axis=1) / np.linalg.norm(expected, axis=1)
    )


CONFIGURATIONS = [
    {"history_size": 0},
    {"history_size": 1},
    {"history_size": 1, "storage": "replay"},
    {"history_size": 5},
    {"history_size": 5, "storage": "replay"},
    {"history_size": 5, "symmetric": True},
    {"history_size": 5, "symmetric": True, "storage": "replay", "chunk_size": 2},
    {"history_size": 5, "leave_one_out": True, "chunk_size": 2},
    {"history_size": 0, "leave_one_out": True},
]


@pytest.mark.parametrize("kwargs", CONFIGURATIONS, ids=str)
def test_estimates_equal_the_definition(kwargs):
    """Cold start, half-full, wrapped around, a scheduled mu, an offset, nan.

    Twelve steps fill the six places twice. Step 4 loses some of its values to nan and
    step 7 all of them; both then lie in the history of later steps.
    """
    u = directions(GAUSSIAN, T, K, jnp.zeros(D))
    beyond = POINTS[4, 0] + np.float32(SCHEDULE(4)) * u[4, :, 0] > LIMITS[4]
    assert 0 < beyond.sum() < K
    mus = [SCHEDULE(t) for t in range(T)]
    definable = {k: v for k, v in kwargs.items() if k not in ("storage", "chunk_size")}
    expected = definition(objective, POINTS, u, mus, **definable)
    whole = ~np.all(expected == 0, axis=1)  # no finite value anywhere: g = 0
    assert whole.sum() >= T - 1
    for offset in (0.0, 1e6):
        g, state = along_the_points(**kwargs)(offset, LIMITS)
        g = np.asarray(g, float)
        assert relative_error(g[whole], expected[whole]) < 1e-5
        assert (g[~whole] == 0).all()
        sides = 2 if kwargs.get("symmetric") else 1
        lost = beyond.sum()
        if sides == 2:
            lost += K - beyond.sum()  # x0 + mu u > x0 on one side of each pair
        assert int(state.log.num_nonfinite[-1]) == lost + K * sides


def test_estimates_equal_the_definition_as_an_accelerator_computes_them(monkeypatch):
    for where in (_numerics, module):
        choose = lambda *args, cpu, accelerator, tpu=None: accelerator(*args)
        monkeypatch.setattr(where, "by_platform", choose)
    u = directions(GAUSSIAN, T, K, jnp.zeros(D))
    mus = [SCHEDULE(t) for t in range(T)]
    expected = definition(objective, POINTS, u, mus, history_size=5)
    whole = np.any(expected != 0, axis=1)
    g, states = along_the_points.__wrapped__(history_size=5)(0.0, LIMITS)
    assert relative_error(np.asarray(g, float)[whole], expected[whole]) < 1e-5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states.sums))


def test_the_conditions_of_the_definition_matter():
    """The oracle itself tells wrong histories, baselines, mus and scalings apart."""
    u = directions(GAUSSIAN, T, K, jnp.zeros(D))
    mus = [SCHEDULE(t) for t in range(T)]
    right = definition(objective, POINTS, u, mus, history_size=5)
    for other in (
        definition(objective, POINTS, u, mus, history_size=4),
        definition(objective, POINTS, u, mus, history_size=6),
        definition(objective, POINTS, u, mus, history_size=5, leave_one_out=True),
        definition(objective, POINTS, u, [0.15] * T, history_size=5),
        definition(lambda _, x: objective(0, x), POINTS, u, mus, history_size=5),
    ):
        assert relative_error(other[6:], right[6:]) > 1e-2


def test_poisoned_values_leave_no_trace():
    """Of a nan step the log lists the values; the rest stays finite throughout."""
    for kwargs in CONFIGURATIONS[3:5]:
        _, states = along_the_points(**kwargs)(0.0, LIMITS)
        listed = np.isnan(states.log.query_values).sum(axis=(1, 2))
        assert listed[7] == K
        assert listed.sum() == states.log.num_nonfinite[-1]
        others = states._replace(log=states.log._replace(query_values=None))
        for leaf in jax.tree.leaves(others):
            assert np.isfinite(np.asarray(leaf, float)).all()
        # The counts by slot after step 7: steps 6, 7, 2, 3, 4, 5 in slots 0..5.
        kept = K - int(states.log.num_nonfinite[4])
        assert states.num_finite[7].tolist() == [K, 0, K, K, kept, K]


def test_huge_finite_values_leave_no_trace_either():
    """Sums beyond float32 neither break an estimate nor stay in the history."""
    x = jnp.zeros(6)
    for storage in ("sums", "replay"):
        opt = zojax.zoar(1e-3, 4, key=KEY, history_size=2, storage=storage)

        def step(state, scale, opt=opt):
            f = lambda z, scale: scale * jnp.sum(z)
            g, state = opt.update(None, state, x, value_fn=f, scale=scale)
            return state, g

        def run(scale, opt=opt, step=step):
            # Three steps of huge values, then four of ordinary ones.
            scales = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]) * scale
            return jax.lax.scan(step, opt.init(x), jnp.maximum(scales, 1.0))[1]

        g = np.asarray(jit(jax.vmap(run))(jnp.geomspace(1e34, 3e38, 300)))
        assert np.isfinite(g).all()
        assert np.abs(g[:, 5:]).max() < 100


# -- expectation and trivial cases -----------------------------------------------------


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_expectation_without_history(leave_one_out):
    """E g = grad f with leave_one_out, (K-1)/K of it without; 5 standard errors."""
    slope = np.array([1.0, -2.0, 0.5])
    opt = zojax.zoar(0.5, 3, key=KEY, history_size=0, leave_one_out=leave_one_out)
    x = jnp.ones(3)
    state = opt.init(x)
    f = lambda z: jnp.dot(jnp.asarray(slope, z.dtype), z) + 7.0

    def one(count):
        return opt.update(None, state._replace(count=count), x, value_fn=f)[0]

    samples = np.asarray(jit(jax.vmap(one))(jnp.arange(30_000)), float)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    expected = slope if leave_one_out else slope * 2 / 3
    assert np.all(np.abs(samples.mean(axis=0) - expected) < 5 * error)
    assert np.max(error) < 0.05


def test_constant_loss_gives_exactly_zero():
    """A constant, a new constant each step, with any storage."""
    x = jnp.ones(4)
    for storage in ("sums", "replay"):
        opt = zojax.zoar(0.1, 3, key=KEY, storage=storage)
        update = jit(
            lambda s, c, o=opt: o.update(None, s, x, value_fn=lambda _, c: c, c=c)
        )
        state = opt.init(x)
        for _ in range(7):
            g, state = update(state, 1e6 + 0.1)
            assert g.tolist() == [0.0] * 4


def test_a_single_direction_learns_only_from_the_history():
    """K = 1: nothing to compare with in the first step, a difference in the second."""
    opt = zojax.zoar(0.5, 1, key=KEY, history_size=1, sampler=RADEMACHER)
    x, f = jnp.zeros(2), lambda z: z[0] + 4 * z[1] ** 2
    update = jit(lambda s: opt.update(None, s, x, value_fn=f))
    u = directions(RADEMACHER, 2, 1, x)[:, 0]
    g, state = update(opt.init(x))
    assert g.tolist() == [0.0, 0.0]
    y = 0.5 * u[:, 0] + 4 * (0.5 * u[:, 1]) ** 2
    b = y.mean()
    g, _ = update(state)
    expected = ((y[0] - b) / 0.5 * u[0] + (y[1] - b) / 0.5 * u[1]) / 2
    np.testing.assert_allclose(g, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("symmetric", "chunk_size", "expected"),
    [(False, None, 4), (True, None, 8), (True, 3, 8)],
)
def test_number_of_calls(symmetric, chunk_size, expected):
    """K queries, 2K for pairs, and none at params, whatever value= says."""
    points = []

    def simulator(x):
        points.append(np.array(x))
        return np.float32(np.sum(np.square(x)))

    def external(x):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(simulator, shape, x, vmap_method="sequential")

    opt = zojax.zoar(0.1, 4, key=KEY, symmetric=symmetric, chunk_size=chunk_size)
    x = jnp.arange(3.0)
    update = jit(lambda s: opt.update(None, s, x, value_fn=external, value=5.0))
    state = opt.init(x)
    for count in (1, 2):
        _, state = jax.block_until_ready(update(state))
        assert len(points) == count * expected
    assert not any((point == np.arange(3.0)).all() for point in points)
    assert state.log.value_at_params is None
    last = [np.sum(p.astype(float) ** 2) for p in points[expected:]]
    np.testing.assert_allclose(state.log.query_mean, np.mean(last), rtol=1e-5)


# -- the state -------------------------------------------------------------------------


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@pytest.mark.parametrize(
    ("storage", "history_size"),
    [("sums", 5), ("replay", 5), ("sums", 0), ("replay", 0)],
)
def test_state_has_fixed_shapes(storage, history_size):
    """N + 1 slots of two vectors, or of 2K weights; updates keep shapes and dtypes."""
    opt = zojax.zoar(0.1, 3, key=KEY, history_size=history_size, storage=storage)
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4, jnp.bfloat16)}
    f = lambda p: jnp.sum(p["a"]) + jnp.sum(p["b"].astype(jnp.float32))
    state = opt.init(params)
    after = jax.eval_shape(lambda s: opt.update(None, s, params, value_fn=f), state)[1]
    describe = lambda s: jax.tree.map(lambda x: (x.shape, x.dtype), s)
    assert describe(after) == describe(state)
    if history_size and storage == "sums":
        assert state.sums["a"].shape == (6, 2, 2, 3)
        assert state.sums["b"].shape == (6, 2, 4)
        assert state.sums["b"].dtype == jnp.float32  # for bfloat16 params too
        assert state.weights is None
    elif history_size:
        assert state.sums is None
        assert state.weights.shape == (6, 2, 3)
    else:
        assert state.sums is None
        assert state.weights is None


def test_bfloat16_params_keep_float32_sums():
    """S and T of a step to float32 precision, where bfloat16 keeps three digits."""
    num = 3
    params = jnp.zeros(4, jnp.bfloat16)
    f = lambda z: jnp.sum(jnp.arange(1.0, 5.0) * z.astype(jnp.float32)) + 2.0
    opt = zojax.zoar(0.125, num, key=KEY, history_size=2)
    update = jit(lambda s: opt.update(None, s, params, value_fn=f))
    g, state = update(opt.init(params))
    u = directions(GAUSSIAN, 1, num, params)[0]
    y = 0.125 * u @ np.arange(1.0, 5.0)
    centred = (y - y.mean()) @ u / 0.125
    np.testing.assert_allclose(state.sums[0, 0], centred, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(state.sums[0, 1], u.sum(axis=0) / 0.125, rtol=1e-5)
    assert g.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(g, float), centred / num, rtol=2**-8)


@pytest.mark.parametrize("storage", ["sums", "replay"])
def test_frozen_leaves_have_no_buffers(storage):
    """A restricted sampler: None in the state, zero gradient, params untouched."""
    sampler = perturbations.restrict(GAUSSIAN, {"head": True, "body": False})
    opt = zojax.zoar(0.5, 3, key=KEY, history_size=2, sampler=sampler, storage=storage)
    params = {"body": jnp.full(1000, 2.0), "head": jnp.ones(3)}
    f = lambda p: jnp.sum(p["head"] ** 2) * p["body"][0]
    state = opt.init(params)
    if storage == "sums":
        assert state.sums["body"] is None
        assert state.sums["head"].shape == (3, 2, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 50
    update = jit(lambda s: opt.update(None, s, params, value_fn=f))
    u = np.asarray(_rows(sampler, 4, 3, params)["head"], float)
    expected = definition(
        lambda _, x: 2 * np.sum(np.float64(x) ** 2),
        np.ones((4, 3)),
        u,
        [0.5] * 4,
        history_size=2,
    )
    for t in range(4):
        g, state = update(state)
        np.testing.assert_allclose(g["head"], expected[t], rtol=1e-5, atol=1e-5)
        assert g["body"].shape == (1000,)
        assert not g["body"].any()


def descent(storage, chunk_size=None):
    """30 steps of a chain with sgd on Rosenbrock: the trajectory."""
    opt = optax.chain(
        zojax.zoar(0.05, 4, key=KEY, storage=storage, chunk_size=chunk_size),
        optax.sgd(1e-4),
    )

    def step(carry, _):
        x, state = carry
        updates, state = opt.update(None, state, x, value_fn=rosenbrock)
        x = optax.apply_updates(x, updates)
        return (x, state), x

    x = jnp.linspace(-1.0, 1.0, 6)
    run = jit(lambda x: jax.lax.scan(step, (x, opt.init(x)), length=30)[1])
    return np.asarray(run(x), float)


def test_storages_and_chunks_walk_the_same_path():
    """Equal to 1e-5 after 30 steps that move by nearly 1."""
    path = descent("sums")
    assert np.linalg.norm(path[-1] - path[0]) > 0.5
    assert rosenbrock(path[-1]) < rosenbrock(path[0])
    for storage, chunk_size in (("replay", None), ("sums", 3), ("replay", 3)):
        other = descent(storage, chunk_size)
        np.testing.assert_allclose(other, path, rtol=0, atol=1e-5)


@pytest.mark.parametrize("storage", ["sums", "replay"])
def test_scan_equals_a_thousand_calls(storage):
    """One scan over 1000 steps and 1000 jitted calls end at the same point."""
    opt = optax.chain(
        zojax.zoar(
            0.05, 4, key=KEY, history_size=3, storage=storage, sampler=RADEMACHER
        ),
        optax.sgd(1e-2),
    )
    f = lambda x: jnp.sum((x - 1.0) ** 2)

    def step(carry, _):
        x, state = carry
        updates, state = opt.update(None, state, x, value_fn=f)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.array([3.0, -2.0, 0.0])
    scanned = jit(lambda c: jax.lax.scan(step, c, length=1000)[0])((x, opt.init(x)))
    called, one = (x, opt.init(x)), jit(step)
    for _ in range(1000):
        called, _ = one(called, None)
    assert int(called[1][0].count) == 1000
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(called), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scanned[0], 1.0, atol=0.05)


# -- arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"smoothing": 0.0}, r"smoothing must be a number > 0, .*schedule, got 0.0$"),
        ({"num_directions": 0}, r"num_directions must be an int >= 1, got 0$"),
        ({"history_size": -1}, r"history_size must be an int >= 0, got -1$"),
        ({"history_size": 1.5}, r"history_size must be an int >= 0, got 1.5$"),
        ({"history_size": True}, r"history_size must be an int >= 0, got True$"),
        (
            {"history_size": 0, "num_directions": 1},
            r"num_directions must be an int >= 2 with history_size=0, got 1$",
        ),
        (
            {"storage": "disk"},
            r"storage must be one of \('sums', 'replay'\), got 'disk'",
        ),
        ({"sampler": 3}, r"sampler must be a zojax.Sampler.*got 3$"),
        ({"chunk_size": 0}, r"chunk_size must be an int >= 1 or None, got 0$"),
        ({"key": None}, r"key must be .*got None$"),
        ({"aux_like": 0.0}, r"aux_like needs has_aux=True"),
    ],
)
def test_bad_arguments_are_refused_in_the_factory(arguments, match):
    with pytest.raises(ValueError, match=match):
        zojax.zoar(**({"smoothing": 0.1, "num_directions": 2, "key": 0} | arguments))


def test_one_pair_without_history_is_enough():
    """symmetric=True: K = 1 and no history is a central difference."""
    opt = zojax.zoar(0.5, 1, key=KEY, history_size=0, symmetric=True)
    x, f = jnp.array([1.0, 2.0]), lambda z: jnp.sum(z**2) + z[0]
    g = jit(lambda s: opt.update(None, s, x, value_fn=f)[0])(opt.init(x))
    u = directions(GAUSSIAN, 1, 1, x)[0, 0]
    slope = np.array([3.0, 4.0])  # central differences of a quadratic are exact
    np.testing.assert_allclose(g, u @ slope * u, rtol=1e-5)
