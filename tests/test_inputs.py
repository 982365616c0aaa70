"""What users pass: one clear error, or the right thing, from every estimator alike."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from registry import ESTIMATORS
from test_common import build, incoming, quick_jit

import zojax
from zojax import _docs as docs
from zojax.perturbations import (
    aligned,
    gaussian,
    lazy,
    orthogonal,
    rademacher,
    restrict,
    sphere,
)

X = jnp.arange(8.0)
# One of each body, and the chains.
SOME = ["forward", "leave_one_out", "dap", "aligned_projection", "zoar", "reinforce"]
SOME += ["zoar_replay", "dap_replay", "low_rank", "mezo"]


def value_fn(x):
    return jnp.sum((x - 2.0) ** 2)


def sum_of_squares(params):
    squares = (jnp.sum(x**2) for x in jax.tree.leaves(params))
    return sum(squares, jnp.zeros(()))


def step(name, params, f, wrap=lambda s: s, **extra_args):
    opt = build(name, wrap)
    seen = incoming(name, params)
    return opt.update(seen, opt.init(params), params, value_fn=f, **extra_args)


# -- guides ----------------------------------------------------------------------------

WRONG_GUIDES = {
    "one entry": jnp.ones(1),
    "a column": jnp.ones((8, 1)),
    "a scalar": jnp.ones(()),
    "complex": jnp.ones(8, jnp.complex64),
    "a dict": {"x": jnp.ones(8)},
    "a str": "guide",
}
CALLS = {
    "dap": lambda guide: zojax.dap(0.1, 4, key=0, guide="updates").update(
        guide,
        zojax.dap(0.1, 4, key=0, guide="updates").init(X),
        X,
        value_fn=value_fn,
    ),
    "aligned": lambda guide: aligned(guide)(jax.random.key(0), 0, 1, X),
    "aligned, fixed": lambda guide: zojax.evaluate(
        value_fn, X, zojax.Directions(aligned(guide, sphere()), 0, 2), 0.1
    ),
    "as_gradient": lambda guide: zojax.as_gradient(guide, X),
}


@pytest.mark.parametrize("guide", WRONG_GUIDES)
@pytest.mark.parametrize("call", CALLS)
def test_a_guide_that_only_broadcasts(call, guide):
    """Shapes that broadcast gave a mean entry of 23 where 2 is right."""
    with pytest.raises(ValueError, match=r"(guide|sums) must be"):
        CALLS[call](WRONG_GUIDES[guide])


def test_the_leaf_of_a_wrong_guide_is_named():
    params = {"a": jnp.ones(3), "b": [jnp.ones(2), jnp.ones((2, 2))]}
    guide = {"a": jnp.ones(3), "b": [jnp.ones(2), jnp.ones(2)]}
    with pytest.raises(ValueError, match=r"guide\['b'\]\[1\] must be .*\(2, 2\)"):
        aligned(guide)(jax.random.key(0), 0, 1, params)
    with pytest.raises(ValueError, match=r"sums\['b'\]\[1\] must be .*\(2, 2\)"):
        zojax.as_gradient(guide, params)


def test_a_guide_may_hold_anything_at_frozen_leaves():
    params = {"a": jnp.ones(3), "b": jnp.arange(3)}
    base = restrict(gaussian(), {"a": True, "b": False})
    v = aligned({"a": jnp.ones(3), "b": None}, base)(jax.random.key(0), 0, 1, params)
    np.testing.assert_allclose(jnp.sum(v["a"]) ** 2, 3, rtol=1e-5)


# -- leaves ----------------------------------------------------------------------------


class NoArray:
    """A leaf that is no array."""


LEAVES = {
    "a function": (jnp.tanh, "must be an array.*partition"),
    "a str": ("relu", "must be an array, got str.*partition"),
    "strings": (np.array(["a"]), "must be an array.*partition"),
    "objects": (np.array([None]), "must be an array.*partition"),
    "an object": (NoArray(), "must be an array, got NoArray"),
    "a key": (jax.random.key(0), "must be an array.*keys as extra args"),
    "float8": (jnp.ones(2, jnp.float8_e4m3fn), "float8_e4m3fn.*bfloat16.*restrict"),
    "complex": (jnp.ones(2, jnp.complex64), "complex64.*two parts.*restrict"),
    "integers": (jnp.arange(2), "int32.*restrict"),
    "a bool": (True, "bool.*restrict"),
}


@pytest.mark.parametrize("kind", LEAVES)
@pytest.mark.parametrize("name", ["forward", "zoar", "dap_replay", "low_rank", "mezo"])
def test_a_leaf_that_cannot_be_perturbed_is_named(name, kind):
    leaf, words = LEAVES[kind]
    params = {"w": jnp.ones(3), "layers": [leaf]}
    with pytest.raises(ValueError, match=r"params\['layers'\]\[0\] .*" + words):
        step(name, params, lambda p: sum_of_squares(p["w"]))


@pytest.mark.parametrize("kind", ["float8", "complex", "integers", "a bool"])
def test_leaves_that_are_frozen_may_be_of_any_number(kind):
    leaf, _ = LEAVES[kind]
    params = {"w": jnp.ones(3), "k": leaf}
    for name in ("forward", "dap", "aligned_projection"):
        wrap = lambda s: restrict(s, {"w": True, "k": False})
        many = {**params, "w": jnp.ones(5)}
        updates, _ = step(name, many, lambda p: sum_of_squares(p["w"]), wrap)
        assert not np.asarray(updates["k"]).astype(bool).any()
        assert jnp.result_type(updates["k"]) == jnp.result_type(leaf)


@pytest.mark.parametrize("name", ["forward", "zoar", "dap", "dap_replay", "mezo"])
def test_python_floats_are_leaves(name):
    params = {"a": 1.0, "b": jnp.ones(2)}
    updates, _ = step(name, params, sum_of_squares)
    assert jnp.shape(updates["a"]) == ()
    assert np.isfinite(updates["b"]).all()


def test_python_floats_under_a_replayed_guide_of_fixed_length():
    signs, params = lazy(rademacher()), {"a": 1.0, "b": jnp.ones(2)}
    opt = zojax.dap(
        0.1, 4, key=0, sampler=signs, base=signs, storage="replay", fixed_length=True
    )
    f = lambda p: sum_of_squares(zojax.materialize(p))
    updates, _ = opt.update(None, opt.init(params), params, value_fn=f)
    assert float(updates["a"]) != 0


def test_an_equinox_model_that_is_not_partitioned():
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    opt = zojax.zoar(0.1, 2, key=0)
    with pytest.raises(ValueError, match=r"params\.activation must be an array"):
        opt.init(model)


@pytest.mark.parametrize("name", SOME)
def test_nothing_to_perturb(name):
    """No leaves, or all frozen: a zero update, and every query is counted."""
    calls = []

    def f(params):
        calls.append(1)
        return jnp.float32(3.0)

    frozen = {"w": jnp.ones(3), "b": jnp.arange(2)}
    for params, wrap in (
        ({}, lambda s: s),
        ((), lambda s: s),
        (frozen, lambda s: restrict(s, False)),
    ):
        updates, state = step(name, params, f, wrap)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        for u in jax.tree.leaves(updates):
            assert not np.asarray(u).any()
        assert float(optax.tree.get(state, "query_mean")) == 3
        assert int(optax.tree.get(state, "num_flat")) == 1
    assert calls


# -- keys ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [jnp.int32(3), jnp.uint32(3), np.int64(3), np.array(3)], ids=repr
)
def test_integer_arrays_are_seeds(seed):
    expected = zojax.zoar(0.1, 2, key=3).init(X).key
    np.testing.assert_array_equal(zojax.zoar(0.1, 2, key=seed).init(X).key, expected)


@pytest.mark.parametrize("seed", [jnp.array(True), 1.5, jnp.ones(3), "3", None])
def test_other_things_are_no_seeds(seed):
    with pytest.raises(ValueError, match="key must be a single threefry2x32 key"):
        zojax.zoar(0.1, 2, key=seed)


def test_replicas_take_keys_of_their_own():
    """vmap(init) gives all of them one key; a factory under vmap gives each its own."""
    make = lambda seed: zojax.zoar(0.1, 2, key=seed)
    replicas = jnp.stack([X, X, X])
    same = jax.vmap(make(0).init)(replicas)
    np.testing.assert_array_equal(same.key, np.stack([same.key[0]] * 3))

    states = jax.vmap(lambda seed, x: make(seed).init(x))(jnp.arange(3), replicas)
    update = functools.partial(make(0).update, None, value_fn=value_fn)
    updates, _ = jax.vmap(update)(states, replicas)
    for i in range(3):
        alone, _ = update(make(i).init(X), X)
        np.testing.assert_allclose(updates[i], alone, rtol=1e-4, atol=1e-4)
    assert not np.allclose(updates[0], updates[1])


# -- binding an objective --------------------------------------------------------------


def positional(x, scale, /):
    return scale * value_fn(x)


def positional_with_default(x, scale=1.0, /):
    return scale * value_fn(x)


def wrapper(*args):
    return value_fn(*args)


def with_rest(x, *rest):
    return value_fn(x)


OBJECTIVES = {
    "by position": (positional, r"\['scale'\] by position only"),
    "by position, default": (positional_with_default, r"\['scale'\] by position only"),
    "*args": (wrapper, r"takes \*args.*name each"),
    "x, *rest": (with_rest, r"takes \*rest.*name each"),
    "None": (lambda x: None, "real scalar, got a NoneType"),
    "a dict": (lambda x: {"loss": value_fn(x)}, "real scalar, got a dict"),
    "a str": (lambda x: "loss", "real scalar, got a str"),
    "(value, aux)": (lambda x: (value_fn(x), 1), "got a tuple: pass has_aux=True"),
    "a bool": (lambda x: value_fn(x) > 1, "bool: cast it to a float"),
    "a vector": (lambda x: x, r"real scalar, got shape \(8,\)"),
    "complex": (lambda x: 1j * value_fn(x), "real scalar, got .*complex64"),
    "no function": (3.0, "value_fn must be callable, got 3.0"),
}


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("name", SOME)
def test_one_clear_error_for_each_wrong_objective(name, kind):
    f, words = OBJECTIVES[kind]
    if kind == "no function" and name == "dap_replay":
        pytest.skip("the registry wraps what these are given")
    with pytest.raises(ValueError, match=words):
        step(name, X, f, scale=2.0)


def test_what_functools_wraps_keeps_its_names():
    @functools.wraps(value_fn)
    def logged(*args, **kwargs):
        return value_fn(*args, **kwargs)

    updates, _ = step("zoar", X, logged)
    assert np.isfinite(updates).all()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: ({"acc": 1.0}, value_fn(x)), "in this order"),
        (lambda x: value_fn(x), r"\(value, aux\) with has_aux=True, got float32"),
        (lambda x: None, r"\(value, aux\) with has_aux=True, got a NoneType"),
    ],
)
def test_wrong_answers_with_aux(answer, words):
    opt = zojax.two_point(0.1, 2, key=0, has_aux=True)
    with pytest.raises(ValueError, match=words):
        opt.update(None, opt.init(X), X, value_fn=answer)


UNTRACEABLE = {
    "numpy": lambda x: np.sum(np.square(np.asarray(x))),
    "float": lambda x: float(jnp.sum(x**2)),
    "if": lambda x: jnp.sum(x) if x[0] > 0 else 0.0,
    "index": lambda x: [1.0, 2.0][jnp.int32(x[0])],
}


@pytest.mark.parametrize("kind", UNTRACEABLE)
@pytest.mark.parametrize("name", ["forward", "zoar_replay", "dap", "low_rank"])
def test_a_numpy_objective_is_shown_the_ways(name, kind):
    opt = build(name)
    update = lambda s: opt.update(None, s, X, value_fn=UNTRACEABLE[kind])
    with pytest.raises(ValueError, match=r"pure_callback.*estimator\.ask"):
        jax.jit(update)(opt.init(X))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_update_without_an_objective(name):
    opt = build(name)
    with pytest.raises(ValueError, match=r"value_fn=.*values="):
        opt.update(incoming(name, X), opt.init(X), X)


@pytest.mark.parametrize("name", SOME[:-1])
def test_a_state_of_something_else(name):
    """Of another estimator, other settings or other params; or of the whole chain."""
    opt = build(name)
    own = type(opt.init(X)).__name__
    other = zojax.zoar(0.1, 3, key=0, history_size=7)
    if own != "ZoarState":
        other = zojax.zoar(0.1, 4, key=0)
    chained = optax.chain(opt, optax.sgd(0.1)).init(X)
    for state in (other.init(X), chained, None, optax.EmptyState()):
        with pytest.raises(ValueError, match=f"state must be a {own}"):
            opt.update(None, state, X, value_fn=value_fn)
        with pytest.raises(ValueError, match=f"state must be a {own}"):
            opt.ask(state, X)


@pytest.mark.parametrize(
    "opt",
    [
        zojax.zoar(0.1, 4, key=0),
        zojax.dap(0.1, 4, key=0, guide="average"),
        zojax.aligned_projection(0.1, 2, key=0),
    ],
)
def test_a_state_of_other_params(opt):
    with pytest.raises(ValueError, match="other settings or params"):
        opt.update(None, opt.init(X[:5]), X, value_fn=value_fn)


@pytest.mark.parametrize("rate", [None, float("nan"), -1.0, "x", True, jnp.ones(2)])
@pytest.mark.parametrize(
    "make",
    [
        lambda rate: zojax.mezo(rate, key=0),
        lambda rate: zojax.spsa(rate, 0.1, key=0),
        lambda rate: zojax.radazo(rate),
    ],
)
def test_learning_rates_are_checked(make, rate):
    with pytest.raises(ValueError, match="learning_rate must be a number >= 0"):
        make(rate)


# -- aux -------------------------------------------------------------------------------


@jax.tree_util.register_pytree_with_keys_class
class Statistics:
    """A pytree node whose structure is equal to no other, as equinox.nn.State."""

    def __init__(self, mean, marker=None):
        self.mean, self.marker = mean, marker or object()

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("mean"), self.mean)], self.marker

    @classmethod
    def tree_unflatten(cls, marker, children):
        return cls(children[0], marker)


@pytest.mark.parametrize("name", ["forward", "leave_one_out", "zoar"])
def test_an_aux_whose_structure_has_no_equality(name):
    kinds = {"forward": {}, "leave_one_out": {"difference": "leave_one_out"}}
    make = zojax.zoar if name == "zoar" else zojax.two_point
    options = kinds.get(name, {})
    opt = make(
        0.1, 4, key=0, has_aux=True, aux_like=Statistics(jnp.zeros(3)), **options
    )
    f = lambda x: (value_fn(x), Statistics(x[:3]))
    step = jax.jit(lambda s: opt.update(None, s, X, value_fn=f)[1])
    state = step(step(opt.init(X)))
    assert step._cache_size() == 1
    assert state.log.aux.mean.shape == (3,)
    wrong = lambda x: (value_fn(x), Statistics(x[:2]))
    with pytest.raises(ValueError, match=r"at aux.*mean it has \(\(3,\).*\(\(2,\)"):
        opt.update(None, opt.init(X), X, value_fn=wrong)


@pytest.mark.parametrize("name", ["forward", "zoar", "one"])
def test_python_numbers_as_aux_are_arrays_and_trace_once(name):
    options = {"has_aux": True, "aux_like": {"a": 0.0, "n": 0}}
    opt = {
        "forward": lambda: zojax.two_point(0.1, 2, key=0, **options),
        "zoar": lambda: zojax.zoar(0.1, 2, key=0, chunk_size=1, **options),
        "one": lambda: zojax.two_point(0.1, 1, key=0, difference="central", **options),
    }[name]()
    traces = []

    def f(x):
        traces.append(1)
        return value_fn(x), {"a": 2.5, "n": 3}

    step = jax.jit(lambda s: opt.update(None, s, X, value_fn=f)[1])
    state = step(opt.init(X))
    traced = len(traces)
    state = step(step(state))
    assert len(traces) == traced
    assert step._cache_size() == 1
    assert {k: float(v) for k, v in state.log.aux.items()} == {"a": 2.5, "n": 3}
    _, eager = opt.update(None, state, X, value_fn=f)
    assert all(isinstance(v, jax.Array) for v in jax.tree.leaves(eager))


def test_a_key_as_aux_is_refused():
    with pytest.raises(ValueError, match=r"aux_like\['k'\] must be an array.*key_data"):
        zojax.two_point(
            0.1, 2, key=0, has_aux=True, aux_like={"k": jax.random.key(0)}
        ).init(X)


# -- lazy leaves -----------------------------------------------------------------------

UNAWARE = {
    "len": lambda w: len(w),
    "reshape": lambda w: w.reshape(-1).sum(),
    "shape": lambda w: w.shape[0],
    "T": lambda w: w.T.sum(),
    "times": lambda w: (w * 2.0).sum(),
    "of a number": lambda w: (2.0 - w).sum(),
    "matmul": lambda w: (w @ jnp.ones(8)).sum(),
    "matmul, right": lambda w: (jnp.ones(8) @ w).sum(),
    "jnp": lambda w: jnp.sum(w),
    "jnp.dot": lambda w: jnp.dot(jnp.ones(8), w),
    "numpy": lambda w: np.asarray(w).sum(),
    "iterate": lambda w: sum(x for x in w),
    "compare": lambda w: jnp.where(w > 0, 1.0, 0.0).sum(),
    "lax": lambda w: jax.lax.dot(jnp.ones(8), w),
}


@pytest.mark.parametrize("use", UNAWARE)
@pytest.mark.parametrize("name", ["two_point", "dap"])
def test_a_module_that_does_not_know_lazy_leaves(name, use):
    """The leaf and the way are named, whatever is done to it."""
    signs = lazy(rademacher())
    opt = {
        "two_point": lambda: zojax.two_point(0.1, 2, key=0, sampler=signs),
        "dap": lambda: zojax.dap(
            0.1, 2, key=0, sampler=signs, base=signs, storage="replay"
        ),
    }[name]()
    params = {"layers": [X]}
    f = lambda p: UNAWARE[use](zojax.materialize(p["layers"][0]))
    if use not in ("numpy", "len"):  # which a traced array may refuse
        opt.update(None, opt.init(params), params, value_fn=f)
    bare = lambda p: UNAWARE[use](p["layers"][0])
    with pytest.raises(
        (TypeError, AttributeError), match=r"params\['layers'\]\[0\].*materialize"
    ):
        opt.update(None, opt.init(params), params, value_fn=bare, value=jnp.zeros(()))


def test_arithmetic_over_the_leaves_of_lazy_params_is_no_silent_number():
    """The noise is named by typed keys, which no sum takes."""
    opt = zojax.two_point(0.1, 2, key=0, sampler=lazy(rademacher()))
    for f in (sum_of_squares, optax.tree.norm):
        with pytest.raises(TypeError):
            opt.update(
                None, opt.init({"w": X}), {"w": X}, value_fn=f, value=jnp.zeros(())
            )


def test_lazy_names_do_not_keep_structures_apart():
    """Two leaves with different names stack, as those of two layers do."""
    signs = lazy(rademacher())
    line = signs.line(jax.random.key(0), 0, 1, {"a": X, "b": X})
    point = line(0.1)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), point["a"], point["b"])
    assert both.value.shape == (2, 8)


# -- a projection does not exceed what it projects -------------------------------------


@pytest.mark.parametrize(("d", "num"), [(3, 3), (4, 4), (5, 4), (8, 8), (8, 7)])
@pytest.mark.parametrize("difference", ["forward", "central"])
def test_projections_near_full_rank(d, num, difference):
    """|g| was up to 657 |grad| near a minimum, where the guide lies in the span."""
    h, mu = jnp.arange(1.0, d + 1), 1e-3
    f = lambda x: jnp.sum(h * x**2) / 2 + jnp.sum(x)
    opt = zojax.aligned_projection(
        mu, num, key=0, sampler=orthogonal(), difference=difference
    )

    def step(carry, _):
        x, state = carry
        g, state = opt.update(None, state, x, value_fn=f)
        gradient = h * x + 1
        return (x - 0.02 * g, state), (g, gradient)

    start = jnp.ones(d)
    run = lambda c: jax.lax.scan(step, c, length=1500)
    _, (g, gradient) = quick_jit(run)((start, opt.init(start)))
    # Rounding of values near 3 over mu, and curvature mu h d / 2, along each of K rows.
    bias = mu * float(h[-1]) * d / 2 if difference == "forward" else 0.0
    slack = np.sqrt(num) * (bias + 3e-7 * 4 / mu)
    sizes, allowed = (np.linalg.norm(np.asarray(a), axis=1) for a in (g, gradient))
    assert np.max(sizes - 1.01 * allowed) < slack


# -- flags and functions of the public parts -------------------------------------------

V = zojax.Directions(rademacher(), 0, 2)
FLAGS = {
    "has_aux of evaluate": lambda x: zojax.evaluate(value_fn, X, V, 0.1, has_aux=x),
    "has_aux of estimate": lambda x: zojax.estimate(
        value_fn, X, V, 0.1, jnp.ravel, has_aux=x
    ),
    "fixed_length of aligned": lambda x: aligned(X, fixed_length=x),
    "fixed_length of dap": lambda x: zojax.dap(0.1, 4, key=0, fixed_length=x),
    "symmetric of zoar": lambda x: zojax.zoar(0.1, 4, key=0, symmetric=x),
    "leave_one_out of zoar": lambda x: zojax.zoar(0.1, 4, key=0, leave_one_out=x),
    "has_aux of reinforce": lambda x: zojax.reinforce(0.1, 4, key=0, has_aux=x),
}


@pytest.mark.parametrize("wrong", ["no", [1], float("nan"), None, 1])
@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_is_true_or_false(flag, wrong):
    with pytest.raises(ValueError, match=rf"{flag.split()[0]} must be True or False"):
        FLAGS[flag](wrong)


def test_from_rows_checks_its_functions():
    row = lambda key, k, num_directions, params: params
    for options, words in (({"check": 3}, "check must be"), ({"design": 1}, "design")):
        with pytest.raises(ValueError, match=words):
            zojax.perturbations.from_rows(row, **options)


# -- errors that end with where the docs answer ----------------------------------------

ESTIMATOR = zojax.zoar(0.1, 2, key=0)


def stepped(f=value_fn, opt=ESTIMATOR, params=X, state=None, **extra_args):
    state = opt.init(params) if state is None else state
    return opt.update(None, state, params, value_fn=f, **extra_args)


def without_extra_args():
    """A wrapper that hands nothing on, as a chain then does."""
    call = lambda updates, state, params=None: ESTIMATOR.update(updates, state, params)
    opt = optax.chain(optax.GradientTransformation(ESTIMATOR.init, call))
    return stepped(opt=opt)


MISTAKES = {
    "numpy in value_fn": (
        lambda: jax.jit(lambda x: stepped(lambda x: float(np.sum(x)), params=x))(X),
        docs.EXTERNAL,
    ),
    "masked leaves": (
        lambda: stepped(
            sum_of_squares,
            optax.masked(ESTIMATOR, {"w": True, "b": False}),
            {"w": X, "b": X},
        ),
        docs.FROZEN,
    ),
    "integer leaves": (lambda: ESTIMATOR.init({"n": jnp.arange(3)}), docs.FROZEN),
    "a model of equinox": (
        lambda: ESTIMATOR.init(eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))),
        docs.EQUINOX,
    ),
    "keys among params": (lambda: ESTIMATOR.init([jax.random.key(0)]), docs.NNX),
    "*args": (lambda: stepped(wrapper), docs.EXTRA_ARGS),
    "data that was not given": (lambda: stepped(lambda x, y: y), docs.EXTRA_ARGS),
    "an argument called value": (lambda: stepped(lambda x, value: x), docs.EXTRA_ARGS),
    "a trainer without value_fn": (
        lambda: ESTIMATOR.update(X, ESTIMATOR.init(X), X),
        docs.EXTRA_ARGS,
    ),
    "a wrapper without extra args": (without_extra_args, docs.EXTRA_ARGS),
    "a state of other settings": (
        lambda: stepped(state=zojax.zoar(0.1, 3, key=0).init(X)),
        docs.RESUMING,
    ),
    "several keys": (
        lambda: zojax.zoar(0.1, 2, key=jax.random.split(jax.random.key(0))),
        docs.MANY_RUNS,
    ),
    "a schedule in place of a number": (
        lambda: zojax.spall_gains(optax.constant_schedule(0.1), 0.1),
        docs.NUMBERS,
    ),
    "optax.inject_hyperparams": (
        lambda: optax.inject_hyperparams(zojax.zoar)(0.1, num_directions=2, key=0).init(
            X
        ),
        docs.NUMBERS,
    ),
    "a replayed guide of plain samplers": (
        lambda: zojax.dap(0.1, 4, key=0, storage="replay"),
        docs.REPLAYED,
    ),
    "a lazy base": (
        lambda: zojax.dap(0.1, 4, key=0, base=lazy(rademacher())),
        docs.REPLAYED,
    ),
    "an axis that is not there": (
        lambda: stepped(opt=zojax.zoar(0.1, 2, key=0, axis_name="rows")),
        docs.MESH,
    ),
    "a limit that nothing keeps": (
        lambda: zojax.external.measuring(float, timeout=1.0),
        docs.TIME_LIMITS,
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_error_ends_with_where_the_docs_answer(mistake):
    make, place = MISTAKES[mistake]
    with pytest.raises(ValueError, match=r"see .* in the docs \(\w+\)") as error:
        make()
    assert str(error.value).endswith(str(place))


def test_a_lazy_leaf_taken_for_an_array_says_where_to_read():
    opt = zojax.zoar(0.1, 2, key=0, sampler=lazy(rademacher()))
    with pytest.raises(TypeError) as error:
        stepped(lambda x: jnp.sum(2 * x), opt)
    assert str(error.value).endswith(str(docs.LAZY))


def test_a_warning_ends_with_where_to_read():
    x = jnp.ones(64, jnp.bfloat16)
    with pytest.warns(UserWarning, match=r"is too small here: .*\(choosing\)$"):
        zojax.check_smoothing(x, 1e-3, key=0)
