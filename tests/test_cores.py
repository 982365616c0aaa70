"""Cores between principal directions, against numpy in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import zojax
from zojax import cores
from zojax.cores import Basis

KEY = jax.random.key(3)
SPREAD = jnp.array([1.0, 9.0, 3.0, 0.5, 2.0])
X = jax.random.normal(KEY, (40, 5)) * SPREAD + 7.0
W = jax.random.normal(jax.random.fold_in(KEY, 1), (5, 4))
LAYERS = jax.random.normal(jax.random.fold_in(KEY, 2), (3, 5, 5)) / 2


def principal(rows, rank):
    """(directions, deviations) of rows by numpy's SVD, in float64."""
    rows = np.asarray(rows, np.float64)
    away = rows - rows.mean(axis=0)
    _, values, vectors = np.linalg.svd(away / np.sqrt(len(rows)))
    return vectors[:rank].T, values[:rank]


def assert_basis(found, x, y, rank=2, other=2, tol=1e-4):
    """a and b are those of inputs x and outputs y, each up to its sign."""
    for matrix, rows, number, whiten in (
        (found.a, x, rank, True),
        (found.b, y, other, False),
    ):
        vectors, values = principal(rows, number)
        expected = vectors / values if whiten else vectors * values
        signs = np.sign(np.sum(expected * np.asarray(matrix, np.float64), axis=0))
        np.testing.assert_allclose(
            matrix, expected * signs, rtol=tol, atol=tol * np.abs(expected).max()
        )


def test_bases_are_principal_directions():
    found = cores.principal_bases(lambda w, x: jnp.tanh(x @ w), W, X, rank=(3, 2))
    assert_basis(found, X, np.asarray(X) @ np.asarray(W), 3, 2)
    np.testing.assert_allclose(
        np.cov(X @ found.a, rowvar=False, ddof=0), np.eye(3), atol=1e-4
    )


def of_loop(layers, x):
    for i in range(len(layers)):
        x = jnp.tanh(x @ layers[i])
    return x


def of_scan(layers, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, layers)[0]


def of_jitted_scan(layers, x):
    return jax.jit(jax.checkpoint(of_scan))(layers, x)


def of_examples(layers, x):
    return jax.vmap(lambda one: of_scan(layers, one))(x)


def of_batches(layers, x):
    return [of_scan(layers, part) for part in (x[:11], x[11:])]


def of_scanned_batches(layers, x):
    body = lambda carry, part: (carry, of_scan(layers, part))
    return jax.lax.scan(body, 0.0, x.reshape(4, 10, -1))[1]


@pytest.mark.parametrize(
    "function",
    [of_loop, of_scan, of_jitted_scan, of_examples, of_batches, of_scanned_batches],
)
def test_each_matrix_of_a_stack_has_its_own(function):
    found = cores.principal_bases(function, LAYERS, X / 10, rank=2)
    x = np.asarray(X / 10, np.float64)
    for i, w in enumerate(np.asarray(LAYERS, np.float64)):
        assert_basis(Basis(found.a[i], found.b[i]), x, x @ w)
        x = np.tanh(x @ w)


@pytest.mark.parametrize(
    "function",
    [
        lambda w, x: w @ x.T,
        lambda w, x: x @ w.T,
        lambda w, x: jnp.einsum("oi,bi->bo", w, x),
        lambda w, x: jnp.einsum("oi,pqi->qpo", w, x.reshape(4, 10, -1)),
    ],
)
def test_the_side_that_is_summed_over_is_the_input(function):
    found = cores.principal_bases(function, W.T, X, rank=(2, 3))
    y = np.asarray(X) @ np.asarray(W)
    assert_basis(Basis(found.b, found.a), X, y, 2, 3)


@pytest.mark.parametrize("shape", [(40,), (20, 2), (10, 2, 2)])
def test_targets_come_first(shape):
    """Ridge regressions by numpy, of rows that share their sentence's targets."""
    x = X.reshape(*shape, 5)
    draw = np.random.default_rng(0).normal(size=(shape[0], 2))
    function = lambda w, x: jnp.einsum("...i,io->...o", x, w)
    found = cores.principal_bases(
        function, W, x, rank=(3, 2), targets=jnp.asarray(draw)
    )
    rows = np.asarray(X, np.float64)
    t = np.repeat(draw, len(rows) // shape[0], axis=0)
    away, apart = rows - rows.mean(0), t - t.mean(0)
    covariance = away.T @ away / len(rows)
    ridge = np.trace(covariance) / 5 * np.eye(5)
    slopes = np.linalg.solve(covariance + ridge, away.T @ apart / len(rows))
    np.testing.assert_allclose(
        found.a[:, :2], slopes / (rows @ slopes).std(axis=0), rtol=2e-3, atol=1e-4
    )
    assert_basis(Basis(found.a[:, 2:], found.b), rows, rows @ np.asarray(W), 1, 2)
    # One target may come without its axis.
    one = cores.principal_bases(function, W, x, rank=(3, 2), targets=draw[:, 0])
    np.testing.assert_allclose(one.a[:, 0], found.a[:, 0], rtol=1e-4)
    alone = cores.principal_bases(function, W, x, rank=(1, 2), targets=draw[:, 0])
    np.testing.assert_array_equal(alone.a, one.a[:, :1])


def test_targets_that_tell_nothing_have_no_direction():
    found = cores.principal_bases(lambda w, x: x @ w, W, X, rank=2, targets=np.ones(40))
    np.testing.assert_array_equal(found.a[:, 0], 0)
    assert np.abs(found.a[:, 1]).max() > 0


def test_reversed_scan():
    function = lambda layers, x: jax.lax.scan(
        lambda x, w: (jnp.tanh(x @ w), x), x, layers, reverse=True
    )
    found = cores.principal_bases(function, LAYERS, X / 10, rank=2)
    assert_basis(
        Basis(found.a[2], found.b[2]),
        X / 10,
        np.asarray(X / 10) @ np.asarray(LAYERS[2]),
    )


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 6, rngs=rngs)
        self.last = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)))


class LinenMlp(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Dense(6)(linen.LayerNorm()(x)))
        return linen.Dense(2)(x)


def test_models_of_flax_as_they_are():
    """Bases, cores and a step for modules that know nothing of them."""
    graph, params = nnx.split(Mlp(nnx.Rngs(0)))
    of_nnx = lambda params, x: jnp.mean(nnx.merge(graph, params)(x) ** 2)
    module = LinenMlp()
    of_linen = lambda params, x: jnp.mean(module.apply(params, x) ** 2)
    for function, frozen in ((of_nnx, params), (of_linen, module.init(KEY, X))):
        bases = cores.principal_bases(function, frozen, X, rank=2)
        tuned, value_fn = cores.zeros(bases), cores.adapt(function)
        assert len(jax.tree.leaves(tuned)) == 2
        opt = optax.chain(zojax.two_point(1e-2, 4, key=0), optax.adam(1e-3))
        state = opt.init(tuned)
        data = {"frozen": frozen, "bases": bases, "x": X}
        for _ in range(5):
            updates, state = opt.update(None, state, tuned, value_fn=value_fn, **data)
            tuned = optax.apply_updates(tuned, updates)
        before, after = function(frozen, X), value_fn(tuned, **data)
        assert after < before
        merged = cores.merge(tuned, frozen, bases)
        chex.assert_trees_all_equal_shapes_and_dtypes(merged, frozen)
        np.testing.assert_allclose(function(merged, X), after, rtol=1e-4)


def loss(params, x, y):
    h = of_scan(params["layers"], x @ params["in"].T)
    return jnp.mean((h @ params["out"] + params["bias"] - y) ** 2)


MODEL = {
    "in": jax.random.normal(KEY, (5, 5)) / 3,
    "layers": LAYERS,
    "out": W,
    "bias": jnp.ones(4),
}
Y = jnp.ones((40, 4))
BASES = cores.principal_bases(loss, MODEL, X, Y, rank=(3, 2))
SOME = jax.tree.map(
    lambda z: 0.3 * jax.random.normal(jax.random.fold_in(KEY, z.size), z.shape),
    cores.zeros(BASES),
)


def whole(tree, bases=BASES, frozen=MODEL):
    """W + A R B^T in float64, by numpy."""
    out = {}
    for name, w in frozen.items():
        out[name] = np.asarray(w, np.float64)
        if bases[name] is not None:
            a, r, b = (
                np.asarray(z, np.float64)
                for z in (bases[name].a, tree[name], bases[name].b)
            )
            out[name] = out[name] + a @ r @ np.swapaxes(b, -1, -2)
    return out


def test_an_adapted_function_is_the_one_of_the_whole_params():
    value_fn = cores.adapt(loss)
    given = {"frozen": MODEL, "bases": BASES, "x": X, "y": Y}
    assert BASES["bias"] is None
    at = {name: jnp.asarray(z, jnp.float32) for name, z in whole(SOME).items()}
    np.testing.assert_allclose(value_fn(SOME, **given), loss(at, X, Y), rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(value_fn)(SOME, **given), loss(at, X, Y), rtol=1e-5
    )
    start = value_fn(cores.zeros(BASES), **given)
    np.testing.assert_allclose(start, loss(MODEL, X, Y), rtol=1e-6)
    merged = cores.merge(SOME, MODEL, BASES)
    chex.assert_trees_all_close(merged, at, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_params_between_the_bases():
    """dL/dR = A^T (dL/dW) B."""
    given = {"frozen": MODEL, "bases": BASES, "x": X, "y": Y}
    found = jax.grad(cores.adapt(loss))(SOME, **given)
    outer = jax.grad(loss)(cores.merge(SOME, MODEL, BASES), X, Y)
    for name, basis in BASES.items():
        if basis is None:
            continue
        expected = np.swapaxes(basis.a, -1, -2) @ np.asarray(outer[name]) @ basis.b
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-4)


def test_an_estimate_is_unbiased_for_that_gradient():
    """The mean of 2,000 directions, within 4 standard errors, entry by entry."""
    value_fn = cores.adapt(loss)
    f = lambda tree: value_fn(tree, frozen=MODEL, bases=BASES, x=X, y=Y)
    exact, _ = jax.flatten_util.ravel_pytree(jax.grad(f)(SOME))
    V = zojax.Directions(zojax.perturbations.rademacher(), 5, 2000)
    values, _ = zojax.evaluate(f, SOME, V, 1e-3, sides=(1.0, -1.0))
    slopes = (values[:, 0] - values[:, 1]) / 2e-3
    mean, _ = jax.flatten_util.ravel_pytree(zojax.combine(slopes / 2000, SOME, V))
    # Of w_k v_k, whose entries are +-w_k: at most the second moment of w.
    error = np.sqrt(float(jnp.mean(slopes**2)) / 2000)
    assert np.abs(np.asarray(mean - exact)).max() < 4 * error


def test_members_share_the_product():
    """No member has a copy of W: planned bytes of 16 are far from 16 matrices."""
    n = 512
    w = jnp.eye(n)
    basis = Basis(jnp.ones((n, 4)) / n, jnp.ones((n, 4)) / n)
    value_fn = cores.adapt(lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2))

    def planned(members):
        tree = jnp.zeros((members, 4, 4))
        run = jax.jit(
            jax.vmap(
                functools.partial(value_fn, frozen=w, bases=basis, x=jnp.ones((2, n)))
            )
        )
        return run.lower(tree).compile().memory_analysis().temp_size_in_bytes

    assert planned(16) < 0.25 * w.nbytes


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_params_keep_their_dtype(dtype):
    frozen = jax.tree.map(lambda z: z.astype(dtype), MODEL)
    x, y = X.astype(dtype), Y.astype(dtype)
    bases = cores.principal_bases(loss, frozen, x, y, rank=2)
    tree = cores.zeros(bases)
    assert {leaf.dtype for leaf in jax.tree.leaves((tree, bases))} == {jnp.dtype("f4")}
    with jax.numpy_dtype_promotion("strict"):
        value = jax.jit(cores.adapt(loss))(tree, frozen=frozen, bases=bases, x=x, y=y)
    assert value.dtype == dtype
    np.testing.assert_allclose(
        np.float32(value), np.float32(loss(frozen, x, y)), rtol=0.02
    )
    chex.assert_trees_all_equal(cores.merge(tree, frozen, bases), frozen)


def test_what_does_not_vary_has_no_direction():
    """Constant inputs: 0, not infinity; and cores there do nothing."""
    x = jnp.ones((6, 5)).at[:, 0].set(jnp.arange(6.0))
    found = cores.principal_bases(lambda w, x: x @ w, W, x, rank=3)
    chex.assert_tree_all_finite(found)
    assert np.abs(found.a[:, 0]).max() > 0
    np.testing.assert_array_equal(found.a[:, 1:], 0)


def test_only_whole_products_count():
    params = {"table": jnp.ones((7, 5)), "w": W, "half": jnp.ones((5, 6)), "b": X[0]}

    def function(p, x):
        rows = p["table"][jnp.array([1, 2])]
        return x @ p["w"], rows, x @ p["half"][:, :3], p["b"]

    found = cores.principal_bases(function, params, X)
    assert [name for name, basis in found.items() if basis is not None] == ["w"]
    assert found["w"].a.shape == (5, 4)


def test_which_chooses():
    for which in ({"in": True, "layers": False, "out": False, "bias": False},):
        found = cores.principal_bases(loss, MODEL, X, Y, which=which)
        assert [name for name, basis in found.items() if basis is not None] == ["in"]
        assert cores.zeros(found)["layers"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": (2, 2, 2)}, "rank must be a number or a pair"),
        ({"rank": 1.5}, "rank"),
        ({"which": {"w": 1}}, "which must be"),
        ({"which": False}, "which must choose"),
        ({"targets": jnp.ones((40, 5))}, "targets must be .* k from 1 to 4"),
        ({"targets": jnp.ones(())}, "targets must be"),
        ({"targets": jnp.ones(39)}, "targets must have the first axes"),
    ],
)
def test_arguments_are_checked(change, words):
    with pytest.raises(ValueError, match=words):
        cores.principal_bases(lambda p, x: x @ p["w"], {"w": W}, X, **change)


def test_more_errors():
    with pytest.raises(ValueError, match=r"which must choose.*'table'"):
        cores.principal_bases(lambda p: p["table"][0], {"table": W})
    with pytest.raises(ValueError, match=r"which must be False at params\['w'\]"):
        cores.principal_bases(lambda p: p["w"], {"w": jnp.zeros((1, 20_000))})
    with pytest.raises(ValueError, match="params=None"):
        cores.principal_bases(lambda p: p, None)
    with pytest.raises(ValueError, match="must name each argument"):
        cores.adapt(lambda params, *args: params)
    with pytest.raises(ValueError, match="no argument 'bases'"):
        cores.adapt(lambda params, bases: params)
    with pytest.raises(ValueError, match="dtype must be floating"):
        cores.zeros(BASES, jnp.int32)


def test_a_run_reaches_what_the_cores_can_reach():
    """A target that is W + A R B^T for some R is found from values alone."""
    target = cores.merge(SOME["out"], W, BASES["out"])
    fit = lambda w, x: jnp.mean(((x - 7.0) @ (w - target)) ** 2)
    value_fn, tree = cores.adapt(fit), jnp.zeros((3, 2))
    opt = optax.chain(
        zojax.two_point(1e-2, 4, key=0),
        optax.adam(optax.linear_schedule(0.05, 0.0, 400)),
    )
    given = {"frozen": W, "bases": BASES["out"], "x": X}

    @jax.jit
    def run(tree):
        def body(carry, _):
            tree, state = carry
            updates, state = opt.update(None, state, tree, value_fn=value_fn, **given)
            return (optax.apply_updates(tree, updates), state), None

        return jax.lax.scan(body, (tree, opt.init(tree)), None, 400)[0][0]

    assert value_fn(run(tree), **given) < 1e-3 * value_fn(tree, **given)
