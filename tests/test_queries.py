"""Evaluating, combining and replaying directions; points."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import _numerics, queries, weights
from zojax._directions import combine_steps, direction_like
from zojax._objective import answer_of
from zojax.perturbations import (
    _noise,
    from_rows,
    gaussian,
    lazy,
    low_rank,
    orthogonal,
    rademacher,
    restrict,
    simplex,
)

KEY = jax.random.key(11)
PARAMS = {
    "w": jnp.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]]),
    "b": jnp.array([0.1, -0.2]),
}
SIDES = (1.0, -1.0)
GAUSSIAN, RADEMACHER = gaussian(), rademacher()
ORTHOGONAL, SIMPLEX = orthogonal(), simplex()

# K = 7 is a multiple of no chunk but 1 and itself; orthogonal() crosses d = 8 with 11
# rows; simplex() takes powers of two only.
CHUNKED = pytest.mark.parametrize(
    ("sampler", "num_directions", "chunk_size"),
    [
        pytest.param(GAUSSIAN, 7, None, id="gaussian-None"),
        pytest.param(RADEMACHER, 7, 1, id="signs-1"),
        pytest.param(RADEMACHER, 7, 2, id="signs-2"),
        pytest.param(GAUSSIAN, 7, 3, id="gaussian-3"),
        pytest.param(RADEMACHER, 7, 100, id="signs-100"),
        pytest.param(RADEMACHER, 1, None, id="single-None"),
        pytest.param(RADEMACHER, 1, 1, id="single-1"),
        pytest.param(ORTHOGONAL, 11, 3, id="orthogonal-3"),
        pytest.param(SIMPLEX, 8, 3, id="simplex-3"),
    ],
)


def value_fn(params):
    """Not linear, not symmetric, with products across leaves."""
    out = jnp.tanh(params["w"]) @ params["b"] + 0.3 * params["w"][:, 0] ** 2
    return jnp.sum(jnp.sin(out) + out**2)


def value64(w, b):
    """The same in float64 numpy."""
    out = np.tanh(w) @ b + 0.3 * w[:, 0] ** 2
    return np.sum(np.sin(out) + out**2)


def as64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@functools.cache
def design(sampler, num_directions):
    """The rows of V under KEY, stacked, straight from the sampler."""
    draw = lambda k: sampler(KEY, k, num_directions, PARAMS)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(jnp.arange(num_directions)))


def expected_values(sampler, num_directions, mu, sides):
    theta, v = as64(PARAMS), as64(design(sampler, num_directions))
    point = lambda name, k, s: theta[name] + mu * s * v[name][k]
    return np.array(
        [
            [value64(point("w", k, s), point("b", k, s)) for s in sides]
            for k in range(num_directions)
        ]
    )


def central(mu):
    return lambda y: weights.central(y[:, 0], y[:, 1], mu)


def mean_baseline(mu):
    return lambda y: weights.mean_baseline(y[:, 0], mu)


# -- values and sums against numpy -----------------------------------------------------


def two_weights(num_directions):
    return np.cos(np.arange(2 * num_directions)).reshape(2, num_directions)


@functools.cache
def answers(sampler, num_directions, chunk_size):
    """All four functions under jit, in one program: compiling is what takes time."""
    w = jnp.asarray(two_weights(num_directions), jnp.float32)

    @jax.jit
    def ask(params, key):
        V = zojax.Directions(sampler, key, num_directions, chunk_size)
        asked = (value_fn, params, V, 0.1)
        return {
            "evaluate": zojax.evaluate(*asked, sides=SIDES),
            "map": queries.map_directions(lambda v: v, params, V),
            "combine": zojax.combine(w, params, V),
            "estimate": zojax.estimate(*asked, central(0.1), sides=SIDES),
        }

    return ask(PARAMS, KEY)


@CHUNKED
def test_values_at_the_perturbed_points(sampler, num_directions, chunk_size):
    """y_kp = f(theta + mu s_p v_k), in float32 [K, P], whatever the chunks."""
    values, aux = answers(sampler, num_directions, chunk_size)["evaluate"]
    assert values.dtype == jnp.float32
    assert aux is None
    expected = expected_values(sampler, num_directions, 0.1, SIDES)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sides", [None, (1.0,), (-0.5, 2.0, 0.0)])
def test_sides(sides):
    """Any scales of mu, +1 alone by default; here without jit."""
    options = {} if sides is None else {"sides": sides}
    V = zojax.Directions(RADEMACHER, KEY, 3)
    values, _ = zojax.evaluate(value_fn, PARAMS, V, 0.1, **options)
    expected = expected_values(RADEMACHER, 3, 0.1, sides or (1.0,))
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


@CHUNKED
def test_chunks_draw_the_same_stream(sampler, num_directions, chunk_size):
    """Bit for bit."""
    stream = answers(sampler, num_directions, chunk_size)["map"]
    expected = design(sampler, num_directions)
    jax.tree.map(np.testing.assert_array_equal, stream, expected)


@CHUNKED
def test_combine_is_the_weighted_sum(sampler, num_directions, chunk_size):
    """V^T w = sum_k w_k v_k, here for two rows of weights [2, K]."""
    w = two_weights(num_directions)
    sums = answers(sampler, num_directions, chunk_size)["combine"]
    for name, v in as64(design(sampler, num_directions)).items():
        assert sums[name].dtype == jnp.float32
        assert sums[name].shape == (2, *PARAMS[name].shape)
        np.testing.assert_allclose(sums[name], np.tensordot(w, v, axes=1), atol=2e-6)


@pytest.mark.parametrize("leading", [(), (2, 3)])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_combine_takes_any_leading_axes(leading, chunk_size):
    w = np.cos(np.arange(np.prod((*leading, 3)))).reshape(*leading, 3)
    V = zojax.Directions(RADEMACHER, KEY, 3, chunk_size)
    sums = zojax.combine(jnp.asarray(w, jnp.float32), PARAMS, V)
    for name, v in as64(design(RADEMACHER, 3)).items():
        np.testing.assert_allclose(sums[name], np.tensordot(w, v, axes=1), atol=2e-6)


@pytest.mark.parametrize(
    ("num_directions", "chunk_size"), [(1, None), (5, None), (5, 1), (5, 3)]
)
def test_combine_steps_replays_every_step(num_directions, chunk_size):
    """sum_n V_n^T w_n with V_n drawn from fold_in(key, n), in any order of steps."""
    steps = np.array([4, 0, 2])
    w = np.sin(np.arange(3 * num_directions)).reshape(3, num_directions)

    @jax.jit
    def replay(w, key):
        V = zojax.Directions(RADEMACHER, key, num_directions, chunk_size)
        return combine_steps(w, PARAMS, V, jnp.asarray(steps))

    sums = replay(jnp.asarray(w, jnp.float32), KEY)
    expected = as64(jax.tree.map(jnp.zeros_like, PARAMS))
    for n, step_weights in zip(steps, w, strict=True):
        step_key = jax.random.fold_in(KEY, int(n))
        for k, weight in enumerate(step_weights):
            v = as64(RADEMACHER(step_key, k, num_directions, PARAMS))
            expected = {name: expected[name] + weight * v[name] for name in v}
    for name, leaf in sums.items():
        np.testing.assert_allclose(leaf, expected[name], atol=3e-6)


def assert_central_estimate(result, sampler, num_directions, mu):
    """(1/K) sum_k [f(theta + mu v_k) - f(theta - mu v_k)] / (2 mu) v_k, in float64."""
    y = expected_values(sampler, num_directions, mu, SIDES)
    np.testing.assert_allclose(result.values, y, rtol=1e-5, atol=1e-6)
    assert result.aux is None
    slopes = (y[:, 0] - y[:, 1]) / (2 * mu)
    for name, v in as64(design(sampler, num_directions)).items():
        expected = np.tensordot(slopes, v, axes=1) / num_directions
        np.testing.assert_allclose(result.sums[name], expected, rtol=1e-4, atol=1e-5)


@CHUNKED
def test_estimate_evaluates_weighs_and_combines(sampler, num_directions, chunk_size):
    result = answers(sampler, num_directions, chunk_size)["estimate"]
    assert_central_estimate(result, sampler, num_directions, 0.1)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_estimate_without_jit(chunk_size):
    V = zojax.Directions(RADEMACHER, KEY, 3, chunk_size)
    result = zojax.estimate(value_fn, PARAMS, V, 0.1, central(0.1), sides=SIDES)
    assert_central_estimate(result, RADEMACHER, 3, 0.1)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_estimate_takes_weights_with_leading_axes(chunk_size):
    """weigh may return f[2, K]: two combinations of the same queries."""
    weigh = lambda y: jnp.stack([y[:, 0], jnp.ones(3)])

    @jax.jit
    def ask(key):
        V = zojax.Directions(RADEMACHER, key, 3, chunk_size)
        return zojax.estimate(value_fn, PARAMS, V, 0.1, weigh)

    result = ask(KEY)
    y = expected_values(RADEMACHER, 3, 0.1, (1.0,))[:, 0]
    for name, v in as64(design(RADEMACHER, 3)).items():
        expected = np.stack([np.tensordot(y, v, axes=1), v.sum(axis=0)])
        np.testing.assert_allclose(result.sums[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_map_directions_stacks_results(chunk_size):
    result = queries.map_directions(
        lambda v: {"product": v["b"][0] * v["w"][1, 1], "first": v["b"][0]},
        PARAMS,
        zojax.Directions(RADEMACHER, KEY, 3, chunk_size),
    )
    v = design(RADEMACHER, 3)
    np.testing.assert_array_equal(result["product"], v["b"][:, 0] * v["w"][:, 1, 1])
    np.testing.assert_array_equal(result["first"], v["b"][:, 0])


def test_keys_of_all_kinds():
    """Typed, legacy and int, wherever a key goes in."""
    x, w = jnp.zeros(6), jnp.arange(3.0)
    value = lambda x: x @ (2.0 ** jnp.arange(6))  # tells all sign vectors apart

    def all_of(key):
        V = zojax.Directions(RADEMACHER, key, 3)
        return [
            zojax.evaluate(value, x, V, 1.0)[0],
            zojax.combine(w, x, V),
            combine_steps(jnp.stack([w, w]), x, V, jnp.arange(2)),
            queries.map_directions(lambda v: v, x, V),
            zojax.estimate(value, x, V, 1.0, lambda y: y[:, 0]).sums,
        ]

    typed, legacy, seed, other = map(
        all_of, (jax.random.key(5), jax.random.PRNGKey(5), 5, 6)
    )
    jax.tree.map(np.testing.assert_array_equal, typed, legacy)
    jax.tree.map(np.testing.assert_array_equal, typed, seed)
    assert all(np.any(x != y) for x, y in zip(typed, other, strict=True))


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_x64(chunk_size):
    """Values and sums are float64 where the parameters are, to their own precision."""
    with jax.enable_x64(True):
        slope = np.array([1.0, -2.0, 0.5])
        x = np.array([1.0, 2.0, 3.0])
        mu = 1e-9
        V = zojax.Directions(ORTHOGONAL, KEY, 3, chunk_size)
        linear = lambda p: jnp.dot(p, slope)
        result = jax.jit(
            lambda x: zojax.estimate(linear, x, V, mu, central(mu), sides=SIDES)
        )(x)
        assert result.values.dtype == np.float64
        assert result.sums.dtype == np.float64
        # Rounding of values of order 1: 1e-16 / 1e-9. In float32 nothing would be left.
        np.testing.assert_allclose(result.sums, slope, atol=1e-5)


# -- what is faster on an accelerator --------------------------------------------------


def as_on_an_accelerator(*args, cpu, accelerator, tpu=None):
    return accelerator(*args)


def as_on_a_tpu(*args, cpu, accelerator, tpu=None):
    return (tpu or accelerator)(*args)


@pytest.fixture(params=["cpu", "accelerator", "tpu"])
def backend(request, monkeypatch):
    """The programs of each, compiled for a CPU."""
    chosen = {"accelerator": as_on_an_accelerator, "tpu": as_on_a_tpu}
    if request.param in chosen:
        for where in (_numerics, _noise):
            monkeypatch.setattr(where, "by_platform", chosen[request.param])
    monkeypatch.setattr(_noise, "LARGE_DRAW", 4)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((3,), 1), ((2, 3), 1), ((4, 2), 2), ((2, 3, 4), 1), ((9, 3), 1), ((0, 3), 1)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_contract(backend, shape, axes, dtype):
    """Against float64."""
    keys = jax.random.split(KEY)
    w = jax.random.normal(keys[0], shape)
    x = jax.random.normal(keys[1], (*shape[len(shape) - axes :], 5, 2), dtype)
    expected = np.tensordot(np.float64(w), np.float64(x), axes)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        found = _numerics.contract(w, x, axes)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def lowered(function, *args):
    """Its program for each platform, lowered by this CPU."""
    traced = jax.jit(function).trace(*args)
    return {
        name: traced.lower(lowering_platforms=(name,)).as_text()
        for name in ("cpu", "cuda", "tpu")
    }


@pytest.mark.parametrize("sampler", [low_rank(1), lazy(rademacher()), rademacher()])
def test_two_sides_are_no_loop_on_an_accelerator(sampler):
    """One trace of f, twice in the program, as MeZO by hand has it."""
    opt, x, traced = zojax.mezo(1e-3, key=0, sampler=sampler), jnp.ones(40), []

    def value_fn(x):
        traced.append(x)
        return jnp.sum(zojax.materialize(x) ** 2)

    step = lambda x, state: opt.update(None, state, x, value_fn=value_fn)
    texts = lowered(step, x, opt.init(x))
    assert len(traced) == 1
    for name in ("cuda", "tpu"):  # a CPU draws in a loop
        assert "stablehlo.while" not in texts[name]


def test_the_platform_is_chosen_when_a_program_is_lowered(monkeypatch):
    """A product on a CPU and a sum elsewhere, of few rows on a GPU one by one."""
    for number in (3, _numerics.FEW_TERMS + 1):
        product = _numerics.contract, jnp.ones(number), jnp.ones((number, 5))
        few = number <= _numerics.FEW_TERMS
        for name, text in lowered(*product).items():
            assert ("dot_general" in text) == (name == "cpu")
            sums = name == "tpu" or (name == "cuda" and not few)
            assert ("stablehlo.reduce" in text) == sums
    # Draws of a batch take turns on a CPU: a loop that slices the keys.
    monkeypatch.setattr(_noise, "LARGE_DRAW", 4)
    draw = jax.vmap(lambda key: _noise.standard_normal(key, (8,)))
    for name, text in lowered(draw, jax.random.split(KEY, 3)).items():
        assert ("dynamic_update_slice" in text) == (name == "cpu")


def test_the_history_is_written_as_suits_the_platform():
    """On a CPU under a condition."""
    opt = zojax.zoar(1e-2, 2, key=0)
    x = jnp.ones(8)
    update = lambda state: opt.update(None, state, x, value_fn=lambda x: jnp.sum(x**2))
    programs = lowered(update, opt.init(x))
    found = {name: text.count("stablehlo.case") for name, text in programs.items()}
    assert found["cpu"] == found["tpu"] + 1 == found["cuda"] + 1


@pytest.mark.parametrize("sampler", [gaussian(), low_rank(1)], ids=["whole", "factors"])
def test_estimates_are_the_means_over_their_directions(backend, sampler):
    """For a linear f: V^T V slope / K, from V as it is drawn outside of vmap."""
    slope = jax.tree.map(jnp.cos, PARAMS)
    dot = lambda p: optax.tree.vdot(p, slope)
    V = zojax.Directions(sampler, KEY, 3)
    result = jax.jit(
        lambda p: zojax.estimate(dot, p, V, 0.5, central(0.5), sides=SIDES)
    )(PARAMS)
    rows = [jax.device_get(sampler(KEY, k, 3, PARAMS)) for k in range(3)]
    along = [sum(np.sum(v[n] * slope[n]) for n in v) for v in rows]
    for name in PARAMS:
        expected = sum(a * v[name] for a, v in zip(along, rows, strict=True)) / 3
        np.testing.assert_allclose(result.sums[name], expected, rtol=1e-5, atol=1e-5)


# -- frozen leaves ---------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_restricted_queries(chunk_size):
    """Frozen leaves, integers and None reach value_fn untouched, with sums of None."""
    params = {**PARAMS, "ids": jnp.array([3, 1]), "none": None}
    mask = {"w": False, "b": True, "ids": False, "none": None}
    V = zojax.Directions(restrict(RADEMACHER, mask), KEY, 3, chunk_size)

    def objective(p):
        assert p["none"] is None
        assert p["ids"].dtype == jnp.int32
        touched = jnp.any(p["w"] != PARAMS["w"]) | jnp.any(p["ids"] != params["ids"])
        return jnp.where(touched, jnp.nan, jnp.dot(p["b"], jnp.array([1.0, 10.0])))

    result = jax.jit(
        lambda params: zojax.estimate(
            objective, params, V, 1.0, central(1.0), sides=SIDES
        )
    )(params)
    b = np.asarray(PARAMS["b"], np.float64)
    rows = as64(design(RADEMACHER, 3))["b"]
    slope = np.array([1.0, 10.0])
    expected = np.stack([(b + rows) @ slope, (b - rows) @ slope], axis=1)
    np.testing.assert_allclose(result.values, expected, rtol=1e-5)
    sums = rows.T @ (rows @ slope) / 3
    np.testing.assert_allclose(result.sums["b"], sums, rtol=1e-5)
    assert [result.sums[name] for name in ("w", "ids", "none")] == [None] * 3

    gradient = zojax.as_gradient(result.sums, params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    np.testing.assert_array_equal(gradient["w"], np.zeros((3, 2)))
    np.testing.assert_array_equal(gradient["ids"], [0, 0])
    assert gradient["ids"].dtype == jnp.int32


def test_direction_like_draws_nothing():
    """Shapes of combine's result: frozen leaves None, at least float32."""
    params = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2), "i": jnp.arange(2)}
    sampler = restrict(GAUSSIAN, {"w": True, "b": True, "i": False})
    V = zojax.Directions(sampler, KEY, 4)
    zeros = direction_like(params, V, (5, 2))
    assert zeros["i"] is None
    assert zeros["w"].shape == (5, 2, 3, 2)
    assert zeros["w"].dtype == zeros["b"].dtype == jnp.float32
    assert not np.any(zeros["w"])
    assert not np.any(zeros["b"])


# -- as_gradient -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_as_gradient_casts_to_params(dtype):
    """Rounded to the dtype of params, saturating at its largest number."""
    largest = float(jnp.finfo(dtype).max)
    sums = jnp.array([1.0, -0.1, 3.3e38, -3.3e38, jnp.inf, -jnp.inf])
    gradient = zojax.as_gradient({"x": sums}, {"x": jnp.ones(6, dtype)})["x"]
    assert gradient.dtype == dtype
    rounded = np.asarray(jnp.asarray(-0.1, dtype), np.float64)
    big = min(largest, 3.3e38)
    expected = [1.0, rounded, big, -big, largest, -largest]
    rtol = 2e-3 if dtype == jnp.bfloat16 else 1e-6  # 3.3e38 is rounded to 8 bits
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected, rtol=rtol)
    assert np.all(np.isfinite(gradient))


def test_as_gradient_is_finite():
    """The promise of an estimator: finite whatever the objective answers."""
    gradient = zojax.as_gradient(jnp.array([jnp.nan, jnp.inf, 1.0]), jnp.ones(3))
    assert np.all(np.isfinite(gradient)), gradient


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_gradient_is_finite_where_sums_overflow(chunk_size):
    """Weights of 3e38 are finite; inf - inf among their products with rows is NaN."""

    def weigh(y):
        return jnp.full(8, 3e38) * jnp.where(jnp.arange(8) % 2, 1, -1)

    @jax.jit
    def ask(key):
        V = zojax.Directions(GAUSSIAN, key, 8, chunk_size)
        return zojax.estimate(value_fn, PARAMS, V, 0.1, weigh)

    gradient = zojax.as_gradient(ask(KEY).sums, PARAMS)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient)), gradient


def test_as_gradient_of_python_floats_and_none():
    """params may be numbers, and hold None."""
    gradient = zojax.as_gradient(
        {"x": jnp.float32(2.0), "none": None}, {"x": 1.0, "none": None}
    )
    assert gradient["none"] is None
    assert float(gradient["x"]) == 2.0


# -- aux -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_directions", "sides", "chunk_size"),
    [
        (3, (1.0, -1.0), None),
        (3, (-1.0, 1.0), 1),
        (3, (-1.0,), 2),
        (1, (1.0,), None),
        (1, (-1.0, 1.0), 1),
    ],
)
def test_aux_is_that_of_the_first_query(num_directions, sides, chunk_size):
    """At theta + mu s_0 v_0, from evaluate and estimate alike."""
    mu, options = 0.25, {"sides": sides, "has_aux": True}

    def objective(params):
        return value_fn(params), {"point": params["b"], "value": value_fn(params)}

    @jax.jit
    def both(params, key):
        V = zojax.Directions(RADEMACHER, key, num_directions, chunk_size)
        asked = (objective, params, V, mu)
        result = zojax.estimate(*asked, lambda y: y[:, 0], **options)
        return zojax.evaluate(*asked, **options), (result.values, result.aux)

    v = as64(design(RADEMACHER, num_directions))["b"][0]
    point = np.asarray(PARAMS["b"], np.float64) + mu * sides[0] * v
    for values, aux in both(PARAMS, KEY):
        np.testing.assert_allclose(aux["point"], point, rtol=1e-6)
        np.testing.assert_allclose(aux["value"], values[0, 0], rtol=1e-6)


@pytest.mark.parametrize("num_directions", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_aux_may_hold_python_numbers(num_directions, chunk_size):
    """A metric that does not depend on params is often a plain number."""
    objective = lambda p: (value_fn(p), {"batch_size": 32, "rate": np.float32(0.5)})
    V = zojax.Directions(RADEMACHER, KEY, num_directions, chunk_size)
    _, aux = zojax.evaluate(objective, PARAMS, V, 0.1, has_aux=True)
    assert (int(aux["batch_size"]), float(aux["rate"])) == (32, 0.5)


# -- what value_fn answers, and value_fns that are no objectives -----------------------


def test_answers():
    """The value in float32 whatever value_fn returns, and the aux as it is."""
    for value in (2, 2.5, np.float64(2.5), jnp.bfloat16(2.5), jnp.int32(2)):
        result, aux = answer_of(value, has_aux=False)
        assert (result.dtype, result.shape) == (jnp.float32, ())
        assert float(result) == float(value)
        assert aux is None
    result, aux = answer_of((PARAMS["b"][0], PARAMS["b"]), has_aux=True)
    assert float(result) == float(PARAMS["b"][0])
    np.testing.assert_array_equal(aux, PARAMS["b"])


BAD_VALUES = [
    pytest.param(lambda p: p["b"][:1], r"real scalar, got shape \(1,\)", id="shape"),
    pytest.param(lambda p: p["w"], r"real scalar, got shape \(3, 2\)", id="matrix"),
    pytest.param(lambda p: p["b"][0] * 1j, "real scalar.*complex64", id="complex"),
    pytest.param(lambda p: (p["b"][0], 1), "has_aux=True", id="tuple"),
]
BAD_AUX = [
    pytest.param(lambda p: p["b"][0], r"\(value, aux\)", id="no-aux"),
    pytest.param(lambda p: (p["b"][0], 1, 2), r"\(value, aux\)", id="three"),
    pytest.param(lambda p: (p["b"], 1), r"real scalar, got shape \(2,\)", id="shape"),
]


def assert_refused(bad, message, has_aux):
    """By each function that asks, however it maps over the directions."""
    with pytest.raises(ValueError, match=f"value_fn must return.*{message}"):
        answer_of(bad(PARAMS), has_aux)
    for num_directions, chunk_size in ((1, None), (3, None), (3, 1), (3, 2)):
        V = zojax.Directions(RADEMACHER, KEY, num_directions, chunk_size)
        asked = (bad, PARAMS, V, 0.1)
        with pytest.raises(ValueError, match=f"value_fn must return.*{message}"):
            zojax.evaluate(*asked, has_aux=has_aux)
        with pytest.raises(ValueError, match=f"value_fn must return.*{message}"):
            zojax.estimate(*asked, mean_baseline(0.1), has_aux=has_aux)


@pytest.mark.parametrize(("bad", "message"), BAD_VALUES)
def test_value_fn_must_return_a_real_scalar(bad, message):
    assert_refused(bad, message, has_aux=False)


@pytest.mark.parametrize(("bad", "message"), BAD_AUX)
def test_value_fn_must_return_a_pair_with_has_aux(bad, message):
    assert_refused(bad, message, has_aux=True)


@pytest.mark.parametrize(
    ("params", "message"), [(None, "params"), ({"x": optax.MaskedNode()}, "restrict")]
)
def test_params_must_be_there(params, message):
    """Missing, or hidden by optax.masked: the error says what to write instead."""
    with pytest.raises(ValueError, match=message):
        zojax.evaluate(value_fn, params, zojax.Directions(RADEMACHER, KEY, 2), 0.1)
    for chunk_size in (None, 1):
        V = zojax.Directions(RADEMACHER, KEY, 2, chunk_size)
        with pytest.raises(ValueError, match=message):
            zojax.estimate(value_fn, params, V, 0.1, mean_baseline(0.1))


# -- narrow dtypes ---------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_a_bfloat16_loss_is_subtracted_in_float32(chunk_size):
    """Trap 14. The sides answer 129/64 and 129/256, exact in bfloat16.

    Their difference 387/256 takes nine bits: bfloat16 would round it to 388/256 or
    386/256.
    """
    high, low = jnp.bfloat16(129 / 64), jnp.bfloat16(129 / 256)
    assert (float(high), float(low)) == (129 / 64, 129 / 256)
    assert float(high - low) != 387 / 256

    step = lambda p: jnp.where(p > 0, high, low)
    V = zojax.Directions(RADEMACHER, KEY, 3, chunk_size)
    result = jax.jit(
        lambda x: zojax.estimate(step, x, V, 0.5, central(0.5), sides=SIDES)
    )(jnp.zeros(()))
    assert result.values.dtype == jnp.float32
    # (1/K) sum_k +-387/256 / (2 mu) v_k, and v_k^2 = 1
    np.testing.assert_allclose(result.sums, 387 / 256, rtol=1e-6)


def nearest(exact, dtype):
    """Float64 rounded to the nearest number of a dtype, found among the neighbours."""
    guess = np.asarray(exact.astype(np.float32)).astype(dtype)
    candidates = np.stack(
        [np.nextafter(guess, dtype(-np.inf)), guess, np.nextafter(guess, dtype(np.inf))]
    ).astype(np.float64)
    distance = np.abs(candidates - exact)
    assert not np.any(distance[1] == np.min(distance[[0, 2]], axis=0))  # no ties
    return np.take_along_axis(candidates, distance.argmin(axis=0)[None], axis=0)[0]


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_bfloat16_points_are_rounded_once_from_untouched_params(chunk_size):
    """Trap 13: both sides are the correctly rounded theta +- mu v.

    Walking from one side to the other, theta + mu v - 2 mu v, would not end there.
    """
    mu, dtype = 0.013, jnp.bfloat16
    theta = jnp.linspace(-0.5, 0.5, 64).astype(dtype)  # spacing 2^-9 to 2^-15
    V = zojax.Directions(RADEMACHER, KEY, 3, chunk_size)
    # The objective reads one entry; vmap reads all.
    one = lambda i: zojax.evaluate(lambda p: p[i], theta, V, mu, sides=SIDES)[0]
    points = jax.jit(jax.vmap(one))(jnp.arange(64))
    v = np.stack([as64(RADEMACHER(KEY, k, 3, theta)) for k in range(3)], axis=1)
    start, step = np.asarray(theta, np.float64)[:, None], float(np.float32(mu)) * v
    plus, minus = nearest(start + step, dtype), nearest(start - step, dtype)
    np.testing.assert_array_equal(points[..., 0], plus)
    np.testing.assert_array_equal(points[..., 1], minus)
    assert np.any(nearest(plus - 2 * step, dtype) != minus)  # what the test can see
    assert np.any(nearest(plus - step, dtype) != start)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_bfloat16_directions_are_combined_in_float32(chunk_size):
    """257 ones sum to 257 in float32, and to 256 in bfloat16."""
    ones = from_rows(lambda key, k, num_directions, params: jnp.ones_like(params))
    V = zojax.Directions(ones, KEY, 257, chunk_size)
    sums = zojax.combine(jnp.ones(257), jnp.ones((), jnp.bfloat16), V)
    assert sums.dtype == jnp.float32
    assert float(sums) == 257


# -- points ----------------------------------------------------------------------------

HEAD = {"w": False, "b": True}
POINTS = pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(GAUSSIAN, id="gaussian"),
        pytest.param(lazy(RADEMACHER, {"w": True, "b": False}), id="lazy"),
        pytest.param(low_rank(1), id="low_rank"),
        pytest.param(restrict(GAUSSIAN, HEAD), id="restrict"),
        pytest.param(restrict(lazy(GAUSSIAN), HEAD), id="restrict-lazy"),
        pytest.param(restrict(low_rank(2), {"w": True, "b": False}), id="restrict-low"),
    ],
)


def expected_points(sampler, num_directions, mu, sides):
    """theta + mu s_p v_k in float64, the sides of v_0 first, frozen leaves as is."""
    theta, found = as64(PARAMS), {name: [] for name in PARAMS}
    for k in range(num_directions):
        v = sampler(KEY, k, num_directions, PARAMS)
        for side in sides:
            for name, leaf in v.items():
                step = 0 if leaf is None else mu * side * np.asarray(leaf, np.float64)
                found[name].append(theta[name] + step)
    return {name: np.stack(leaves) for name, leaves in found.items()}


@POINTS
@pytest.mark.parametrize(
    ("num_directions", "sides"), [(3, SIDES), (1, SIDES), (3, (-0.5, 2.0, 0.0))]
)
def test_points(sampler, num_directions, sides):
    """[K P, ...] at each leaf, in the order of values.ravel(); plain arrays."""
    V = zojax.Directions(sampler, KEY, num_directions)
    points = queries.points(PARAMS, V, 0.3, sides=sides)
    assert jax.tree.structure(points) == jax.tree.structure(PARAMS)
    expected = expected_points(sampler, num_directions, 0.3, sides)
    for name, leaf in points.items():
        assert isinstance(leaf, jax.Array)
        assert leaf.dtype == PARAMS[name].dtype
        assert leaf.shape == (num_directions * len(sides), *PARAMS[name].shape)
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-6, atol=1e-6)


@POINTS
def test_points_are_where_evaluate_asks(sampler):
    """One side by default; under jit, chunks change nothing."""
    objective = lambda p: value_fn(zojax.materialize(p))

    @jax.jit
    def both(params, mu):
        V = zojax.Directions(sampler, KEY, 3)
        in_chunks = zojax.Directions(sampler, KEY, 3, chunk_size=2)
        points = [queries.points(params, V, mu) for V in (V, in_chunks)]
        return zojax.evaluate(objective, params, V, mu)[0], *points

    values, points, same = both(PARAMS, 0.3)
    jax.tree.map(np.testing.assert_array_equal, points, same)
    np.testing.assert_allclose(jax.vmap(value_fn)(points), values[:, 0], rtol=1e-5)


def test_points_repeat_what_is_frozen():
    """Integers and None too."""
    params = {**PARAMS, "ids": jnp.array([3, 1]), "none": None}
    mask = {"w": False, "b": True, "ids": False, "none": None}
    for base in (GAUSSIAN, lazy(GAUSSIAN), low_rank(1)):
        V = zojax.Directions(restrict(base, mask), KEY, 2)
        points = queries.points(params, V, 0.3, sides=SIDES)
        assert points["none"] is None
        for name in ("w", "ids"):
            repeated = np.stack([np.asarray(params[name])] * 4)
            np.testing.assert_array_equal(points[name], repeated)
            assert points[name].dtype == params[name].dtype
        assert len(np.unique(points["b"], axis=0)) == 4


# -- what the parts refuse -------------------------------------------------------------

V_OF_TWO = zojax.Directions(RADEMACHER, KEY, 2)


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("sampler", [RADEMACHER, low_rank(1)], ids=["whole", "factors"])
@pytest.mark.parametrize("shape", [(4,), (1,), (3,), (), (2, 1)], ids=str)
def test_weights_are_one_for_each_direction(shape, sampler, chunk_size):
    """Never sliced or broadcast to K."""
    V = zojax.Directions(sampler, KEY, 2, chunk_size)
    message = r"weights must have the shape {} with K = 2 directions, got {}"
    refused = lambda accepted, shape: pytest.raises(
        ValueError, match=message.format(re.escape(accepted), re.escape(str(shape)))
    )
    with refused("[..., K]", shape):
        zojax.combine(jnp.ones(shape), PARAMS, V)
    with refused("[..., K]", shape):
        zojax.estimate(value_fn, PARAMS, V, 0.1, lambda y: jnp.ones(shape))
    with refused("[K]", shape):
        queries.add_directions(PARAMS, jnp.ones(shape), V)
    with refused("[N, K]", (3, *shape)):
        combine_steps(jnp.ones((3, *shape)), PARAMS, V, jnp.arange(3))


def test_weights_have_the_axes_that_are_summed():
    """Of one step, or one row for each step."""
    with pytest.raises(ValueError, match=r"shape \[K\] .*got \(3, 2\)"):
        queries.add_directions(PARAMS, jnp.ones((3, 2)), V_OF_TWO)
    with pytest.raises(ValueError, match=r"shape \[N, K\] .*got \(2,\)"):
        combine_steps(jnp.ones(2), PARAMS, V_OF_TWO, jnp.arange(1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_directions": 2.5}, "num_directions must be an int >= 1, got 2.5"),
        ({"num_directions": 0}, "num_directions must be an int >= 1, got 0"),
        ({"num_directions": True}, "num_directions must be an int >= 1, got True"),
        ({"sampler": SIMPLEX, "num_directions": 3}, "a power of two >= 2"),
        ({"chunk_size": 0}, "chunk_size must be an int >= 1 or None, got 0"),
        ({"chunk_size": 1.5}, "chunk_size must be an int >= 1 or None, got 1.5"),
        ({"axis_name": 3}, "axis_name must be the name of a mesh axis or None, got 3"),
        ({"sampler": GAUSSIAN.row}, "sampler must be a zojax.Sampler.*from_rows"),
        ({"sampler": gaussian}, "sampler must be a zojax.Sampler.*from_rows"),
        ({"key": None}, "key must be a single threefry2x32 key.*got None"),
    ],
)
def test_directions_refuse(changed, message):
    arguments = {"sampler": RADEMACHER, "key": KEY, "num_directions": 2, **changed}
    with pytest.raises(ValueError, match=message):
        zojax.Directions(**arguments)


# Each part that takes a V, as a function of it.
PARTS = {
    "evaluate": lambda V: zojax.evaluate(value_fn, PARAMS, V, 0.1),
    "estimate": lambda V: zojax.estimate(value_fn, PARAMS, V, 0.1, mean_baseline(0.1)),
    "points": lambda V: queries.points(PARAMS, V, 0.1),
    "combine": lambda V: zojax.combine(jnp.ones(2), PARAMS, V),
    "combine_steps": lambda V: combine_steps(
        jnp.ones((1, 2)), PARAMS, V, jnp.arange(1)
    ),
    "add_directions": lambda V: queries.add_directions(PARAMS, jnp.ones(2), V),
    "map_directions": lambda V: queries.map_directions(lambda v: v, PARAMS, V),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("bad", [RADEMACHER, KEY, (RADEMACHER, KEY, 2), None], ids=type)
def test_directions_must_be_directions(part, bad):
    """A sampler, a key, both with K, or nothing."""
    with pytest.raises(ValueError, match=r"directions must be a zojax\.Directions\("):
        PARTS[part](bad)


ASKING = {
    "evaluate": lambda mu, **options: zojax.evaluate(
        value_fn, PARAMS, V_OF_TWO, mu, **options
    ),
    "estimate": lambda mu, **options: zojax.estimate(
        value_fn, PARAMS, V_OF_TWO, mu, mean_baseline(0.1), **options
    ),
    "points": lambda mu, **options: queries.points(PARAMS, V_OF_TWO, mu, **options),
}


@pytest.mark.parametrize("part", ASKING)
@pytest.mark.parametrize(
    "bad", [(), [1.0], 1.0, None, (1.0, np.nan), (np.inf,), ("+",)], ids=str
)
def test_sides_are_a_tuple_of_finite_numbers(part, bad):
    message = f"sides must be a tuple of finite numbers.*got {re.escape(repr(bad))}"
    with pytest.raises(ValueError, match=message):
        ASKING[part](0.1, sides=bad)


@pytest.mark.parametrize("part", ASKING)
@pytest.mark.parametrize(
    "bad", [0, 0.0, -1e-3, np.nan, np.inf, "0.1", None, jnp.ones(2), jnp.cos]
)
def test_smoothing_is_a_positive_number(part, bad):
    """A schedule is an estimator's to evaluate."""
    with pytest.raises(ValueError, match="smoothing must be a number > 0, got"):
        ASKING[part](bad)


def test_add_directions_takes_no_mesh_axis():
    V = zojax.Directions(RADEMACHER, KEY, 2, axis_name="k")
    with pytest.raises(ValueError, match=r"axis_name must be None.*got 'k'"):
        queries.add_directions(PARAMS, jnp.ones(2), V)


# -- memory and number of calls --------------------------------------------------------

NUM_PARAMETERS = 1024 * 1024


def temporary_bytes(sampler, num_directions, chunk_size):
    """Scratch memory of a compiled estimate on 2^20 float32 parameters."""
    weigh = central(1e-3)

    def estimate(params, key):
        V = zojax.Directions(sampler, key, num_directions, chunk_size)
        objective = lambda p: jnp.sum(p["w"] ** 2) + jnp.sum(p["b"])
        return zojax.estimate(objective, params, V, 1e-3, weigh, sides=SIDES).sums

    params = {
        "w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32),
        "b": jax.ShapeDtypeStruct((64,), jnp.float32),
    }
    program = jax.jit(estimate).lower(params, KEY).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("sampler", [GAUSSIAN, RADEMACHER])
def test_memory_does_not_grow_with_the_number_of_directions(sampler):
    """Trap 26: with chunk_size=1, K = 4 and K = 32 need the same.

    Signs leave it at one perturbed copy; drawing normals takes XLA some more.
    """
    few, many = (temporary_bytes(sampler, k, 1) for k in (4, 32))
    assert many <= 1.1 * few
    # XLA of JAX 0.9 plans 3% more.
    signs = 2.1 if jax.__version_info__ < (0, 10) else 2
    copies = signs if sampler is RADEMACHER else 8
    assert many < copies * 4 * NUM_PARAMETERS


@pytest.mark.parametrize("num_directions", [4, 32])
def test_memory_without_chunks_holds_all_directions(num_directions):
    """What chunk_size=None says: K copies at once, or the test above shows nothing."""
    needed = temporary_bytes(RADEMACHER, num_directions, None)
    assert needed >= num_directions * 4 * NUM_PARAMETERS


@pytest.mark.parametrize(
    ("num_directions", "sides", "chunk_size", "jitted"),
    [
        (7, SIDES, None, False),
        (7, SIDES, None, True),
        (7, SIDES, 1, True),
        (7, SIDES, 3, False),
        (7, SIDES, 3, True),
        (4, (1.0,), None, True),
        (4, (1.0,), 3, True),
        (1, SIDES, None, True),
        (1, (1.0,), 1, False),
    ],
)
def test_number_of_calls(num_directions, sides, chunk_size, jitted):
    """Trap 23: an external simulator is called K P times, at K P different points."""
    calls = []

    def simulate(x):
        calls.append(tuple(np.asarray(x).tolist()))
        return np.float32(sum(calls[-1]))

    def objective(x):
        return jax.pure_callback(
            simulate,
            jax.ShapeDtypeStruct((), jnp.float32),
            x,
            vmap_method="sequential",
        )

    def estimate(x, key):
        V = zojax.Directions(RADEMACHER, key, num_directions, chunk_size)
        return zojax.estimate(objective, x, V, 0.25, lambda y: y[:, 0], sides=sides)

    x = jnp.arange(64.0)  # 2^64 sign vectors: no two directions are equal
    result = (jax.jit(estimate) if jitted else estimate)(x, KEY)
    values = np.asarray(jax.block_until_ready(result).values)
    assert len(calls) == num_directions * len(sides)
    assert len(set(calls)) == len(calls)
    # Each call is where it belongs, whatever the order they came in.
    assert sorted(values.ravel().tolist()) == sorted(
        float(np.float32(sum(point))) for point in calls
    )


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_number_of_calls_of_evaluate(chunk_size):
    """evaluate alone asks K P times as well, and combine never."""
    calls = []

    def objective(x):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        count = lambda x: (calls.append(1), np.float32(0))[1]
        return jax.pure_callback(count, shape, x, vmap_method="sequential")

    @jax.jit
    def ask(x, key):
        V = zojax.Directions(RADEMACHER, key, 5, chunk_size)
        values, _ = zojax.evaluate(objective, x, V, 0.1, sides=SIDES)
        return zojax.combine(values[:, 0], x, V)

    jax.block_until_ready(ask(jnp.ones(6), KEY))
    assert len(calls) == 10
