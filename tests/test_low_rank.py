"""Low-rank perturbations: the numbers of whole directions, without a perturbed copy.

Monte Carlo claims allow 5 standard errors, estimated from the samples; keys are fixed.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import zojax
from zojax.perturbations import (
    LowRankArray,
    from_rows,
    gaussian,
    low_rank,
    rademacher,
    restrict,
    sphere,
)
from zojax.perturbations._low_rank import interpreter
from zojax.perturbations._sampler import perturb

KEY = jax.random.key(4)
X = jax.random.normal(jax.random.key(5), (3, 6))
TOKENS = jnp.array([[1, 6, 6], [0, 2, 5]])


def normal(seed, *shape, dtype=jnp.float32):
    x = jax.random.normal(jax.random.key(seed), shape) / math.sqrt(max(shape[-1:]))
    return x.astype(dtype)


def explicit(sampler):
    """The same directions, known by their rows alone."""
    return from_rows(sampler.row)


def mlp(params, x=X):
    hidden = jax.nn.relu(x @ params["w"] + params["b"])
    return jnp.mean((hidden @ params["out"]) ** 2)


MLP = {"w": normal(0, 6, 7), "b": normal(1, 7), "out": normal(2, 7, 4)}


def language_model(params):
    """Lookups, layers under a scan, and the table again to read out."""

    def body(x, layer):
        return x + jnp.tanh(x @ layer["w"] + layer["b"]), None

    x, _ = jax.lax.scan(body, params["table"][TOKENS], params["layers"])
    logits = jnp.einsum("btd,vd->btv", x, params["table"])
    return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])


LANGUAGE = {
    "table": normal(3, 9, 6),
    "layers": {"w": normal(4, 3, 6, 6), "b": normal(5, 3, 6)},
}

LINEN = nn.Sequential([nn.Dense(7), nn.gelu, nn.Dense(4, dtype=jnp.float32)])
LINEN_PARAMS = LINEN.init(jax.random.key(6), X)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(9, 6, rngs=rngs)
        self.inner = nnx.Linear(6, 7, rngs=rngs)
        self.norm = nnx.LayerNorm(7, rngs=rngs)
        self.outer = nnx.Linear(7, 4, rngs=rngs)

    def __call__(self, tokens):
        return self.outer(nnx.silu(self.norm(self.inner(self.embed(tokens)))))


GRAPH, STATE = nnx.split(Net(nnx.Rngs(0)))


@jax.custom_vjp
def cubed(x):
    return x**3


cubed.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))

W = {"w": normal(7, 6, 7)}
STACK = {"w": normal(8, 3, 6, 6)}
ONE_BY_ONE = {"w": normal(9, 6, 6)}


def rows_of_a_scan(params):
    """Rows of a matrix are scanned over, and another use is in the carry."""

    def body(carry, row):
        return (carry[0] + jnp.tanh(row @ carry[1].T).sum(), carry[1]), row * 2

    (total, _), rows = jax.lax.scan(body, (0.0, params["w"]), params["w"])
    return total + jnp.mean(rows**2)


def in_branches(params):
    product = lambda w: jnp.sum(X @ w)
    branch = jax.lax.cond(X[0, 0] > 0, product, lambda w: -product(w), params["w"])
    loop = jax.lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] + product(params["w"])), (0, 0.0)
    )
    return jnp.tanh(branch) + 0.1 * loop[1]


def by_callback(params):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    norm = lambda w, x: np.float32(np.linalg.norm(x @ w))
    return jax.pure_callback(norm, shape, params["w"], X, vmap_method="sequential")


# Name: (params, value_fn). These keep the factors throughout...
FACTORED = {
    "mlp": (MLP, mlp),
    "jit": (MLP, jax.jit(mlp)),
    "language": (LANGUAGE, language_model),
    "linen": (LINEN_PARAMS, lambda p: jnp.mean(LINEN.apply(p, X) ** 2)),
    "nnx": (STATE, lambda s: jnp.mean(nnx.merge(GRAPH, s)(TOKENS) ** 2)),
    "transposed": (W, lambda p: jnp.mean(jnp.tanh(X @ p["w"]) @ p["w"].T)),
    "from the left": (W, lambda p: jnp.mean(jnp.sin(p["w"].T @ X.T))),
    "vector": (W, lambda p: jnp.sum(jnp.sin(X[0] @ p["w"]))),
    "einsum": (W, lambda p: jnp.sum(jnp.sin(jnp.einsum("io,ni->on", p["w"], X)))),
    "checkpoint": (MLP, lambda p: jax.checkpoint(mlp)(p)),
    "checkpoint scan": (LANGUAGE, jax.checkpoint(language_model)),
    "custom_vjp": (W, lambda p: jnp.mean(cubed(X @ p["w"]))),
    "vmapped": (W, lambda p: jnp.sum(jax.vmap(lambda x: jnp.sin(x @ p["w"]))(X))),
    "columns": (W, lambda p: jnp.sum(jnp.sin(p["w"][:, jnp.array([1, 1, 4])]))),
    "take": (W, lambda p: jnp.sum(jnp.sin(jnp.take(p["w"], TOKENS % 6, axis=0)))),
    "fill": (
        W,
        lambda p: jnp.sum(p["w"].at[jnp.array([1, 99])].get(mode="fill", fill_value=3)),
    ),
    "slices": (W, lambda p: jnp.sum(jnp.sin(X[:, :4] @ p["w"][1:5, ::2]))),
    "split": (
        W,
        lambda p: sum(
            jnp.sum(jnp.sin((X @ part) ** i))
            for i, part in enumerate(jnp.split(p["w"], [2, 3], axis=1))
        ),
    ),
    "layers by index": (
        STACK,
        lambda p: jnp.sum(jnp.sin(X @ p["w"][0] @ p["w"][-1] @ p["w"][2].T)),
    ),
    "layers by fori_loop": (
        STACK,
        lambda p: jnp.sum(
            jax.lax.fori_loop(0, 3, lambda i, x: jnp.sin(x @ p["w"][i]), X)
        ),
    ),
    "experts": (
        STACK,
        lambda p: jnp.sum(
            jnp.sin(jnp.einsum("ni,nio->no", X, p["w"][jnp.array([2, 0, 2])]))
        ),
    ),
    "every expert": (
        STACK,
        lambda p: jnp.sum(jnp.sin(jnp.einsum("ni,eio->eno", X, p["w"]))),
    ),
    "batched": (STACK, lambda p: jnp.sum(jnp.sin(X[:, None] @ p["w"]))),
    "reversed": (
        STACK,
        lambda p: jax.lax.scan(
            lambda x, w: (jnp.sin(x @ w), x.sum()), X, p["w"], reverse=True
        )[1].sum(),
    ),
    "moved": (
        STACK,
        lambda p: jnp.sum(jnp.sin(jnp.einsum("ni,oei->n", X, p["w"].T.swapaxes(0, 2)))),
    ),
    "constant of a scan": (
        ONE_BY_ONE,
        lambda p: jax.lax.scan(
            lambda x, _: (jnp.sin(x @ p["w"]), None), X, None, length=3
        )[0].sum(),
    ),
    "matrix squared": (ONE_BY_ONE, lambda p: jnp.sum(jnp.sin(X @ (p["w"] @ p["w"])))),
}
# ... and these form a matrix somewhere.
FALLING_BACK = {
    "elementwise": (MLP, lambda p: mlp(p) + 0.1 * jnp.sum(jnp.sin(p["w"]))),
    "conv": (
        {"kernel": normal(10, 3, 3, 2, 4), "b": normal(11, 4)},
        lambda p: (
            jnp.mean(
                jax.lax.conv_general_dilated(
                    jnp.ones((1, 5, 5, 2)),
                    p["kernel"],
                    (1, 1),
                    "SAME",
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )
                + p["b"]
            )
            ** 2
        ),
    ),
    "over a stack": (STACK, lambda p: jnp.sum(jnp.einsum("ei,eio->o", X, p["w"]) ** 2)),
    "both axes": (W, lambda p: jnp.einsum("io,io->", p["w"], jnp.sin(W["w"]))),
    "rows of a scan": (ONE_BY_ONE, rows_of_a_scan),
    "branches": (W, in_branches),
    "callback": (W, by_callback),
    "int": (W, lambda p: (100 * p["w"]).astype(jnp.int32).sum() * 1.0),
}
MODELS = FACTORED | FALLING_BACK


def values_of(name, sampler, number=4, chunk_size=None):
    params, value_fn = MODELS[name]
    V = zojax.Directions(sampler, KEY, number, chunk_size)
    evaluate = lambda params: zojax.evaluate(
        value_fn, params, V, 1e-2, sides=(1.0, -1.0)
    )[0]
    return jax.jit(evaluate)(params)


@pytest.mark.parametrize("name", MODELS)
def test_values_are_those_along_the_whole_directions(name):
    """f at params + mu v_k from the factors and from the rows: 1e-5 in float32."""
    sampler = low_rank(2, rademacher())
    found = values_of(name, sampler)
    expected = values_of(name, explicit(sampler))
    assert np.ptp(expected) > 1e-4  # so that the test can fail
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("base", "rank", "chunk_size"),
    [
        (gaussian, 1, 1),
        (gaussian, 1, 3),
        (gaussian, 9, None),
        (rademacher, 1, None),
        (rademacher, 9, 1),
        (rademacher, 9, 3),
        (rademacher, 9, None),
    ],
)
def test_ranks_bases_and_chunks(base, rank, chunk_size):
    """Rank 9 is beyond each matrix here."""
    sampler = low_rank(rank, base())
    found = values_of("language", sampler, chunk_size=chunk_size)
    expected = values_of("language", explicit(sampler))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_without_jit_and_with_one_query():
    params, sampler = MLP, low_rank(1)
    value_fn = lambda p: (mlp(p), {"w": p["w"], "n": 3})
    V = zojax.Directions(sampler, KEY, 1)
    found, aux = zojax.evaluate(value_fn, params, V, 1e-2, has_aux=True)
    moved = perturb(params, sampler(KEY, 0, 1, params), 1e-2)
    np.testing.assert_allclose(found[0, 0], mlp(moved), rtol=1e-5)
    np.testing.assert_allclose(aux["w"], moved["w"], atol=1e-6)
    assert aux["n"] == 3


@pytest.mark.parametrize("number", [1, 3, 40])
@pytest.mark.parametrize("leading", [(), (2,)])
def test_weighted_sums_are_those_of_the_rows(number, leading):
    """V^T w from the factors, for few terms and for many: 1e-5."""
    sampler, params = low_rank(2), {**LANGUAGE, "scalar": jnp.ones(())}
    weights = jax.random.normal(jax.random.key(8), (*leading, number))
    sums = lambda s: zojax.combine(weights, params, zojax.Directions(s, KEY, number))
    rows = jax.vmap(lambda k: sampler(KEY, k, number, params))(jnp.arange(number))
    by_hand = jax.tree.map(
        lambda v: np.tensordot(np.asarray(weights, np.float64), v, axes=1), rows
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, sums(sampler), by_hand)
    jax.tree.map(close, sums(explicit(sampler)), by_hand)


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_a_step_is_that_of_the_whole_directions(chunk_size):
    steps = []
    low = low_rank(2, rademacher())
    for sampler in (low, explicit(low)):
        opt = zojax.two_point(
            1e-1, 4, key=0, sampler=sampler, difference="central", chunk_size=chunk_size
        )
        update = jax.jit(lambda s, o=opt: o.update(None, s, MLP, value_fn=mlp)[0])
        steps.append(update(opt.init(MLP)))
    # Values of 1e-7 relative, divided by 2 mu.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, *steps)


# -- statistics ------------------------------------------------------------------------

SHAPES = {
    "matrix": jnp.zeros((2, 3)),
    "stack": jnp.zeros((2, 1, 2)),
    "vector": jnp.zeros(2),
    "scalar": jnp.zeros(()),
    "empty": jnp.zeros((0, 2)),
}
COUNT = 40_000


@functools.cache
def many_rows(rank, base):
    draw = lambda k: jax.flatten_util.ravel_pytree(
        low_rank(rank, base())(jax.random.key(0), k, 1, SHAPES)
    )[0]
    return np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(COUNT)), np.float64)


def assert_mean(samples, expected):
    """Within 5 standard errors, and 1e-5 for rounding."""
    error = np.abs(samples.mean(0) - expected)
    allowed = 5 * samples.std(0, ddof=1) / math.sqrt(len(samples)) + 1e-5
    assert np.all(error <= allowed), (error / allowed).max()


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("base", [gaussian, rademacher])
def test_second_moment_is_the_identity(base, rank):
    """E[v] = 0, E[v v^T] = I, E|v|^2 = d; entries within a matrix are dependent."""
    v = many_rows(rank, base)
    assert v.shape == (COUNT, 13)
    assert_mean(v, 0)
    assert_mean(v[:, :, None] * v[:, None, :], np.eye(13))
    assert_mean(np.sum(v**2, axis=1), 13)


def test_an_estimate_of_a_linear_function_is_unbiased():
    """E[V^T V g / K] = g, through evaluate and combine."""
    slope = {"w": normal(12, 3, 4), "b": normal(13, 2)}
    value_fn = lambda p: jnp.sum(slope["w"] * p["w"]) + slope["b"] @ p["b"]
    params = jax.tree.map(jnp.zeros_like, slope)

    def gradient(key):
        V = zojax.Directions(low_rank(1), key, 2)
        weigh = lambda y: zojax.weights.central(y[:, 0], y[:, 1], 1.0)
        return zojax.estimate(value_fn, params, V, 1.0, weigh, sides=(1.0, -1.0)).sums

    keys = jax.random.split(jax.random.key(1), 10_000)
    found = jax.jit(jax.vmap(gradient))(keys)
    jax.tree.map(
        lambda g, s: assert_mean(np.asarray(g, np.float64), np.asarray(s)), found, slope
    )


def test_a_direction_has_its_rank():
    v = low_rank(2)(KEY, 0, 1, {"w": jnp.zeros((3, 8, 7))})["w"]
    assert np.all(np.linalg.matrix_rank(v, tol=1e-4) == 2)
    assert not np.allclose(v[0], v[1])


def test_vectors_and_scalars_are_drawn_as_the_base_draws_them():
    for base in (gaussian(), rademacher()):
        v, w = (s(KEY, 2, 4, SHAPES) for s in (low_rank(3, base), base))
        for name in ("vector", "scalar"):
            np.testing.assert_array_equal(v[name], w[name])


def test_a_leaf_draws_the_same_whatever_is_beside_it():
    few, many = (low_rank(1)(KEY, 1, 2, p) for p in ({"w": MLP["w"]}, MLP))
    np.testing.assert_array_equal(few["w"], many["w"])
    other = low_rank(1)(KEY, 1, 50, MLP)
    np.testing.assert_array_equal(other["w"], many["w"])


# -- dtypes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "language", "linen", "nnx", "elementwise"])
def test_bfloat16_params(name):
    """Traced dtypes are kept; the noise is not rounded with the weights.

    So the factored values are close to those in float32 of the rounded weights, at the
    rounding of activations (2^-8).
    """
    params, value_fn = MODELS[name]
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)

    def values(params, sampler):
        V = zojax.Directions(sampler, KEY, 4)
        evaluate = lambda params: zojax.evaluate(value_fn, params, V, 1e-1)[0]
        return jax.jit(evaluate)(params)

    wide = jax.tree.map(lambda p: p.astype(jnp.float32), low)
    found, expected = values(low, low_rank(2)), values(wide, explicit(low_rank(2)))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=4e-2, atol=4e-2)


def test_a_perturbation_below_the_rounding_of_bfloat16_is_seen():
    """W + mu v rounds back to W in bfloat16, W beside factors does not."""
    params = {"w": jnp.ones((6, 4), jnp.bfloat16)}
    value_fn = lambda p: jnp.sum(
        jnp.einsum("ni,io->no", X.astype(jnp.bfloat16), p["w"]).astype(jnp.float32)
    )
    wide_fn = lambda p: jnp.sum(X @ p["w"].astype(jnp.float32))

    def values(value_fn, sampler):
        V = zojax.Directions(sampler, KEY, 4)
        return zojax.evaluate(value_fn, params, V, 1e-4)[0]

    assert np.ptp(values(wide_fn, explicit(low_rank(1)))) == 0
    assert np.ptp(values(wide_fn, low_rank(1))) > 0
    assert np.isfinite(values(value_fn, low_rank(1))).all()


def test_float64_params():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: np.asarray(p, np.float64), MLP)
        sampler = low_rank(2)
        values = [
            zojax.evaluate(mlp, params, zojax.Directions(s, KEY, 3), 1e-3)[0]
            for s in (sampler, explicit(sampler))
        ]
        assert values[0].dtype == np.float64
        np.testing.assert_allclose(*values, rtol=1e-12)


# -- what value_fn is given, and what is frozen ----------------------------------------


def test_value_fn_is_given_arrays():
    seen = []

    def value_fn(p):
        seen.append(p)
        return mlp(p)

    opt = zojax.mezo(1e-2, key=0, sampler=low_rank(1))
    opt.update(None, opt.init(MLP), MLP, value_fn=value_fn)
    assert {jnp.shape(p["w"]) for p in seen} == {(6, 7)}
    assert all(isinstance(p["w"], jax.Array) for p in seen)


def test_frozen_leaves_are_seen_as_they_are():
    """Also integers, which value_fn gets untraced; the others move as without them."""
    params = {**MLP, "steps": jnp.asarray(3, jnp.int32)}
    mask = {"w": True, "b": False, "out": False, "steps": False}
    sampler, alone = restrict(low_rank(1), mask), low_rank(1)
    point = sampler.line(KEY, 1, 4, params)(1e-2)
    assert isinstance(point["w"], LowRankArray)
    assert point["out"] is params["out"]
    value_fn = lambda p: mlp(p) * p["steps"]
    V = zojax.Directions(sampler, KEY, 4)
    found, _ = zojax.evaluate(value_fn, params, V, 1e-2)
    expected, _ = zojax.evaluate(
        lambda p: value_fn({**params, **p}),
        {"w": MLP["w"]},
        zojax.Directions(explicit(alone), KEY, 4),
        1e-2,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    opt = zojax.mezo(1e-2, key=0, sampler=sampler)
    updates, _ = opt.update(None, opt.init(params), params, value_fn=value_fn)
    assert jnp.any(updates["w"] != 0)
    assert not any(jnp.any(updates[name]) for name in ("b", "out", "steps"))


def test_nothing_trainable_gives_nothing():
    sampler = restrict(low_rank(1), False)
    params = {"a": jnp.ones((2, 2))}
    assert sampler(KEY, 0, 1, params) == {"a": None}
    V = zojax.Directions(sampler, KEY, 2)
    values, _ = zojax.evaluate(lambda p: p["a"].sum(), params, V, 0.1)
    np.testing.assert_array_equal(values, 4)


def test_directions_spread_over_devices():
    """Inside shard_map the traced program has the types of the perturbed params."""
    params, value_fn = MODELS["language"]
    weigh = lambda y: y[:, 0] - y[:, 1]

    def estimate(axis):
        V = zojax.Directions(low_rank(2, rademacher()), KEY, 8, axis_name=axis)
        of_params = lambda params: zojax.estimate(
            value_fn, params, V, 1e-1, weigh, sides=(1.0, -1.0)
        )
        return jax.jit(of_params)(params)

    mesh = jax.make_mesh((4,), ("k",), axis_types=(jax.sharding.AxisType.Auto,))
    expected = estimate(None)
    with jax.set_mesh(mesh):
        found = estimate("k")
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: low_rank(0), "rank must be an int >= 1"),
        (lambda: low_rank(1.5), "rank must be an int >= 1"),
        (lambda: low_rank(1, sphere()), "base must be gaussian"),
        (
            lambda: low_rank(1)(KEY, 0, 1, {"i": jnp.arange(3)}),
            "only float leaves can be perturbed",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- memory ----------------------------------------------------------------------------


def equations(jaxpr):
    """All equations of a program, also of those inside."""
    for eqn in jaxpr.eqns:
        yield eqn
        for param in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(param, "jaxpr", param)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def made(name, sampler, number=5):
    """(primitive, shape) of whatever is made that has both axes of some matrix.

    Neither K = 5 nor a size of the batch is a size of a matrix.
    """
    params, value_fn = MODELS[name]
    V = zojax.Directions(sampler, KEY, number)
    evaluate = lambda params: zojax.evaluate(value_fn, params, V, 1e-2)
    traced = jax.make_jaxpr(evaluate)(params)
    matrices = {leaf.shape[-2:] for leaf in jax.tree.leaves(params) if leaf.ndim >= 2}
    # A stack of biases is a matrix too, whose rows a scan is given as arrays.
    matrices -= {LANGUAGE["layers"]["b"].shape}
    has = lambda shape, m, n: shape.count(m) >= 1 + (m == n) and n in shape
    return {
        (eqn.primitive.name, v.aval.shape)
        for eqn in equations(traced.jaxpr)
        for v in eqn.outvars
        if any(has(v.aval.shape, m, n) for m, n in matrices)
    }


@pytest.mark.parametrize("name", ["mlp", "jit", "linen", "nnx", "language"])
def test_no_matrix_is_made(name):
    """Neither [m, n] nor [K, m, n]: params are only multiplied and looked up."""
    params = jax.tree.leaves(MODELS[name][0])
    assert made(name, low_rank(1)) == set()
    copies = {shape for _, shape in made(name, explicit(low_rank(1)))}
    for leaf in params:  # so that the test can fail
        stack_of_biases = leaf.shape == LANGUAGE["layers"]["b"].shape
        assert leaf.ndim < 2 or stack_of_biases or (5, *leaf.shape) in copies


def test_transposes_are_made_of_the_untouched_matrix():
    assert made("transposed", low_rank(1)) == {("transpose", (7, 6))}


def test_falling_back_makes_a_matrix_for_each_direction():
    assert (5, 6, 7) in {shape for _, shape in made("elementwise", low_rank(1))}


def compiled_bytes(sampler, number, apply):
    params = jax.ShapeDtypeStruct((8, 512, 512), jnp.float32)
    x = jax.ShapeDtypeStruct((8, 512), jnp.float32)
    opt = optax.chain(
        zojax.two_point(1e-3, number, key=0, sampler=sampler, difference="central"),
        optax.sgd(1e-2),
    )

    def value_fn(params, x):
        body = lambda x, w: (jnp.tanh(x @ w), None)
        return jnp.mean(jax.lax.scan(body, x, params)[0] ** 2)

    def step(params, state, x):
        updates, state = opt.update(None, state, params, value_fn=value_fn, x=x)
        return optax.apply_updates(params, updates) if apply else updates, state

    state = jax.eval_shape(opt.init, params)
    donated = (0, 1) if apply else ()
    lowered = jax.jit(step, donate_argnums=donated).lower(params, state, x)
    found = lowered.compile().memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )


@pytest.mark.parametrize("apply", [True, False])
def test_eight_directions_need_the_memory_of_one(apply):
    """Compiled bytes of a step at K = 8 and chunk_size=None: at most 1.2 times K = 1.

    Applied to donated params in the same program, or with the updates as its result.
    """
    sampler = low_rank(1)
    one, eight = (compiled_bytes(sampler, number, apply) for number in (1, 8))
    assert eight <= 1.2 * one
    whole = compiled_bytes(explicit(sampler), 8, apply)
    assert whole > 5 * eight  # so that the test can fail


def test_a_program_that_cannot_be_read_names_the_versions(monkeypatch):
    """As a later JAX may hold them: the error says what was tested, and the way out."""

    def unreadable(eqn, *inputs):
        raise AttributeError("'JaxprEqn' object has no attribute 'params'")

    monkeypatch.setitem(interpreter._RULES, "dot_general", unreadable)
    V = zojax.Directions(low_rank(1), 0, 2)
    words = rf"JAX {interpreter.VERSIONS} .* of JAX {jax.__version__}.*from_rows"
    with pytest.raises(RuntimeError, match=words):
        zojax.evaluate(lambda w: jnp.sum(jnp.ones(3) @ w), jnp.ones((3, 2)), V, 0.1)
