"""Lazy perturbations: the same numbers as whole directions, at a forward's memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax import materialize
from zojax.perturbations import (
    PerturbedArray,
    from_rows,
    gaussian,
    lazy,
    rademacher,
    restrict,
)
from zojax.perturbations import sphere as not_independent
from zojax.perturbations._sampler import perturb

STACKED = {"layers": True, "table": True, "head": False}


def params_like(dtype=jnp.float32):
    key = jax.random.split(jax.random.key(3), 4)
    return {
        "layers": {
            "w": jax.random.normal(key[0], (3, 5, 5), dtype),
            "b": jax.random.normal(key[1], (3, 5), dtype),
        },
        "table": jax.random.normal(key[2], (7, 5), dtype),
        "head": jax.random.normal(key[3], (5,), dtype),
    }


def model(params, tokens):
    """Uses rows of a table, layers under a scan, and a whole leaf."""

    def body(x, layer):
        layer = materialize(layer)
        return jnp.tanh(x @ layer["w"] + layer["b"]), None

    x, _ = jax.lax.scan(body, materialize(params["table"][tokens]), params["layers"])
    return jnp.sum(x @ materialize(params["head"])).astype(jnp.float32)


TOKENS = jnp.array([1, 6, 6])
VALUE_FN = lambda params: model(params, TOKENS)


@pytest.mark.parametrize("base", [gaussian, rademacher])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_queries_are_those_along_the_whole_directions(base, chunk_size):
    """Values asked lazily are f at params + mu v_k, v_k from the sampler itself."""
    params, sampler, key = params_like(), lazy(base(), STACKED), jax.random.key(5)
    V = zojax.Directions(sampler, key, 3, chunk_size)
    values, _ = zojax.evaluate(VALUE_FN, params, V, 1e-2, sides=(1.0, -1.0))
    for k in range(3):
        v = sampler(key, k, 3, params)
        for p, side in enumerate((1, -1)):
            moved = jax.tree.map(lambda x, v, s=side: x + s * 1e-2 * v, params, v)
            np.testing.assert_allclose(values[k, p], VALUE_FN(moved), rtol=2e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("base", [gaussian, rademacher])
def test_a_line_is_the_perturbed_copy_to_the_bit(base, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = params_like(jnp.dtype(dtype))
        sampler, key = lazy(base(), STACKED), jax.random.key(6)
        seen = materialize(sampler.line(key, 2, 4, params)(1e-2))
        copy = perturb(params, sampler(key, 2, 4, params), 1e-2)
        for a, b, p in zip(*map(jax.tree.leaves, (seen, copy, params)), strict=True):
            assert a.dtype == p.dtype
            assert jnp.array_equal(a, b)
            assert not jnp.array_equal(a, p)


def test_nothing_trainable_gives_nothing():
    params = {"a": jnp.ones(2)}
    frozen = restrict(lazy(gaussian()), False)
    assert frozen(jax.random.key(0), 0, 1, params) == {"a": None}
    V = zojax.Directions(frozen, 0, 1)
    values, _ = zojax.evaluate(lambda p: p["a"].sum(), params, V, 0.1)
    assert values.item() == 2


@pytest.mark.parametrize("base", [gaussian, rademacher])
def test_rows_and_slices_are_independent_and_isotropic(base):
    """E[v v^T] = I within 5 standard errors, across slices and leaves."""
    params = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)}
    sampler = lazy(base(), {"a": True, "b": False})
    draw = lambda k: jax.flatten_util.ravel_pytree(
        sampler(jax.random.key(0), k, 1, params)
    )[0]
    rows = np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(20_000)), np.float64)
    assert np.abs(rows.mean(0)).max() < 5 / np.sqrt(len(rows))
    moment = rows.T @ rows / len(rows)
    assert np.abs(moment - np.eye(8)).max() < 5 * np.sqrt(2 / len(rows))


def test_the_noise_of_a_slice_does_not_depend_on_the_others():
    sampler, key = lazy(rademacher(), True), jax.random.key(1)
    few, many = (sampler(key, 0, 1, jnp.zeros((n, 40))) for n in (3, 8))
    assert jnp.array_equal(few, many[:3])
    assert not jnp.array_equal(many[0], many[1])


def test_unstacked_leaves_draw_what_the_base_draws():
    params, key = params_like(), jax.random.key(2)
    expected = gaussian()(key, 4, 8, params)
    found = lazy(gaussian())(key, 4, 8, params)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, expected, found))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_estimators_take_the_step_of_a_copy(dtype):
    """A lazy step equals one along the same directions, kept as copies."""
    params = params_like(dtype)
    sampler = lazy(rademacher(), STACKED)
    whole = from_rows(sampler.row)  # not lazy
    results = []
    for one in (sampler, whole):
        opt = optax.chain(
            zojax.zoar(1e-1, 2, key=0, sampler=one, storage="replay", chunk_size=1),
            optax.sgd(1e-2),
        )

        @jax.jit
        def step(params, state, opt=opt):
            updates, state = opt.update(None, state, params, value_fn=VALUE_FN)
            return optax.apply_updates(params, updates), state

        current, state = params, opt.init(params)
        for _ in range(3):
            current, state = step(current, state)
        results.append(current)
    close = lambda a, b: np.testing.assert_allclose(
        np.asarray(a, np.float32),
        np.asarray(b, np.float32),
        rtol=1e-5 if dtype == jnp.float32 else 1e-2,
        atol=1e-5 if dtype == jnp.float32 else 1e-2,
    )
    jax.tree.map(close, *results)


def test_frozen_leaves_are_seen_as_they_are():
    params = params_like()
    mask = {"layers": {"w": True, "b": False}, "table": False, "head": True}
    sampler = restrict(lazy(gaussian(), STACKED), mask)
    seen = {}

    def value_fn(at):
        seen.update(at)
        return model(at, TOKENS)

    opt = zojax.mezo(1e-2, key=0, sampler=sampler)
    updates, _ = opt.update(None, opt.init(params), params, value_fn=value_fn)
    assert isinstance(seen["layers"]["w"], PerturbedArray)
    assert isinstance(seen["head"], PerturbedArray)
    assert not isinstance(seen["table"], PerturbedArray)
    assert not isinstance(seen["layers"]["b"], PerturbedArray)
    assert jnp.all(updates["table"] == 0)
    assert jnp.all(updates["layers"]["b"] == 0)
    assert jnp.any(updates["layers"]["w"] != 0)


def test_a_masked_model_can_be_differentiated():
    """materialize is the identity on arrays: one model for both orders."""
    gradient = jax.grad(VALUE_FN)(params_like())
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def of_layers(params, x):
    body = lambda x, w: (jnp.tanh(x @ materialize(w)), None)
    return jnp.sum(jax.lax.scan(body, x, params["layers"])[0])


def compiled_size(compiled):
    """Arguments, results and temporary memory, buffers used twice counted once."""
    found = compiled.memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )


def test_more_directions_need_no_more_memory_in_place():
    """K = 8 added one by one: at most 1.05 of K = 1, and 1.10 of a forward pass."""
    params = {"layers": jax.ShapeDtypeStruct((16, 256, 256), jnp.float32)}
    x = jax.ShapeDtypeStruct((8, 256), jnp.float32)
    sampler, mu = lazy(rademacher(), True), 1e-3

    def step(params, n, x, num_directions, in_place):
        key = jax.random.fold_in(jax.random.key(0), n)
        V = zojax.Directions(sampler, key, num_directions, chunk_size=1)
        objective = lambda p: of_layers(p, x)
        y, _ = zojax.evaluate(objective, params, V, mu, sides=(1.0, -1.0))
        w = -1e-3 * zojax.weights.central(y[:, 0], y[:, 1], mu)
        if in_place:
            return zojax.queries.add_directions(params, w, V)
        return optax.apply_updates(params, zojax.combine(w, params, V))

    def size(num_directions, in_place=True):
        jitted = jax.jit(step, static_argnums=(3, 4), donate_argnums=0)
        lowered = jitted.lower(params, jnp.int32(0), x, num_directions, in_place)
        return compiled_size(lowered.compile())

    forward = compiled_size(jax.jit(of_layers).lower(params, x).compile())
    assert size(8) <= 1.05 * size(1)
    assert size(8) <= 1.10 * forward
    assert size(8, in_place=False) > 1.5 * forward  # so the test can fail


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_directions_added_in_place(dtype):
    """theta + V^T w: rounded to the dtype K times; frozen and overflowing stay."""
    params = {
        "w": jnp.linspace(-1, 1, 24, dtype=dtype).reshape(4, 6),
        "frozen": jnp.ones(3, jnp.int32),
    }
    mask = {"w": True, "frozen": False}
    sampler = restrict(lazy(gaussian(), {"w": True, "frozen": False}), mask)
    w = jnp.array([0.5, -0.25, 0.125])
    found = zojax.queries.add_directions(params, w, zojax.Directions(sampler, 5, 3))
    directions = [sampler(jax.random.key(5), k, 3, params)["w"] for k in range(3)]
    expected = np.asarray(params["w"], np.float64)
    for weight, v in zip(w, directions, strict=True):
        expected = expected + float(weight) * np.asarray(v, np.float64)
    tolerance = 1e-6 if dtype == "float32" else 3 * 2.0**-8 * 2
    np.testing.assert_allclose(found["w"].astype(float), expected, atol=tolerance)
    assert found["w"].dtype == dtype
    np.testing.assert_array_equal(found["frozen"], params["frozen"])
    huge = {"w": jnp.full(4, 3e38), "frozen": params["frozen"]}
    V = zojax.Directions(restrict(rademacher(), mask), 5, 1)
    moved = zojax.queries.add_directions(huge, jnp.array([3e38]), V)
    assert set(np.asarray(moved["w"]).tolist()) <= {float(np.float32(3e38)), 0.0}


def test_a_step_needs_the_memory_of_a_forward_pass():
    """Compiled bytes of a two-sided step: at most 1.10 forward passes, no copy."""
    params = {"layers": jax.ShapeDtypeStruct((16, 256, 256), jnp.float32)}
    x = jax.ShapeDtypeStruct((8, 256), jnp.float32)

    forward = compiled_size(jax.jit(of_layers).lower(params, x).compile())
    ratios = {}
    for name, sampler in (
        ("lazy", lazy(rademacher(), True)),
        ("copy", rademacher()),
    ):
        opt = zojax.mezo(1e-3, key=0, sampler=sampler)

        def step(params, state, x, opt=opt):
            updates, state = opt.update(None, state, params, value_fn=of_layers, x=x)
            return optax.apply_updates(params, updates), state

        state = jax.eval_shape(opt.init, params)
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, x)
        ratios[name] = compiled_size(compiled.compile()) / forward
    assert ratios["lazy"] < 1.10
    assert ratios["copy"] > 1.5  # so the test can fail


def test_indexing_is_along_slices_only():
    line = lazy(gaussian(), True).line(jax.random.key(0), 0, 1, jnp.ones((4, 3)))
    seen = line(1.0)
    assert materialize(seen[jnp.array([0, 2])]).shape == (2, 3)
    assert materialize(seen[1]).shape == (3,)
    with pytest.raises(IndexError, match="only the first axis"):
        seen[0, 1]
    with pytest.raises(IndexError, match="is one slice"):
        seen[1][0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lazy(not_independent()), "base must be gaussian"),
        (lambda: lazy(gaussian(), {"a": 1}), "stacked must be a pytree prefix"),
        (
            lambda: lazy(gaussian(), True)(jax.random.key(0), 0, 1, jnp.ones(())),
            "stacked must be False at the scalar",
        ),
        (
            lambda: lazy(gaussian(), {"b": True})(
                jax.random.key(0), 0, 1, {"a": jnp.ones(2)}
            ),
            "stacked must be a pytree prefix of params",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
