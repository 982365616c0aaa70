"""What all estimators take: clip, shaping, query keys, the log; a twin of jax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax
from zojax.perturbations import orthogonal, rademacher, sphere

MU, K = 0.5, 4
X = jnp.arange(6.0)
# Those that compare values of a step with each other, or two sides.
WITHOUT_PARAMS = {
    "central": lambda **kw: zojax.two_point(MU, K, key=0, difference="central", **kw),
    "mean": lambda **kw: zojax.two_point(MU, K, key=0, difference="mean", **kw),
    "zoar": lambda **kw: zojax.zoar(MU, K, key=0, history_size=0, **kw),
    "dap": lambda **kw: zojax.dap(MU, K, key=0, difference="central", **kw),
    "projection": lambda **kw: zojax.aligned_projection(
        MU, K, key=0, difference="central", **kw
    ),
    "reinforce": lambda **kw: zojax.reinforce(MU, K, key=0, baseline="mean", **kw),
}
WITH_PARAMS = {
    "forward": lambda **kw: zojax.two_point(MU, K, key=0, **kw),
    "dap, forward": lambda **kw: zojax.dap(MU, K, key=0, **kw),
    "projection, forward": lambda **kw: zojax.aligned_projection(MU, K, key=0, **kw),
    "reinforce, value": lambda **kw: zojax.reinforce(MU, K, key=0, **kw),
}
ALL = WITHOUT_PARAMS | WITH_PARAMS
QUERIED = ("central", "zoar", "dap, forward", "projection", "reinforce, value")


def step(opt, value_fn, x=X, **extra_args):
    return opt.update(None, opt.init(x), x, value_fn=value_fn, **extra_args)


def value_fn(x):
    return jnp.sum((x - 1.0) ** 2)


# -- shaping ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITHOUT_PARAMS)
def test_shaping_acts_on_the_values(name):
    """Tripled values are a tripled objective; the log keeps what came."""
    shaped, state = step(WITHOUT_PARAMS[name](shaping=lambda y: 3 * y), value_fn)
    expected, _ = step(WITHOUT_PARAMS[name](), lambda x: 3 * value_fn(x))
    np.testing.assert_allclose(shaped, expected, rtol=1e-5, atol=1e-4)
    _, plain = step(WITHOUT_PARAMS[name](), value_fn)
    np.testing.assert_array_equal(state.log.query_values, plain.log.query_values)


def ranks(y):
    """Centred ranks of the finite values, in [-1/2, 1/2]."""
    order = jnp.argsort(jnp.argsort(y.ravel())).reshape(y.shape)
    return order / (jnp.isfinite(y).sum() - 1) - 0.5


def test_ranks_by_hand():
    """Only the order of the values counts: g = (1/K mu) sum r_k v_k, r centred."""
    opt = zojax.zoar(MU, K, key=0, history_size=0, sampler=rademacher(), shaping=ranks)
    state = opt.init(X)
    v = (np.asarray(opt.ask(state, X)) - X) / MU
    for values in ([3.0, -1.0, 9.0, 4.0], [0.3, 0.1, 1e6, 0.31]):
        found, _ = opt.update(None, state, X, values=values)
        r = np.array([1, 0, 3, 2]) / 3 - 0.5
        np.testing.assert_allclose(found, r @ v / (K * MU), rtol=1e-5, atol=1e-6)


def test_what_is_not_finite_stays_so():
    """A rank would make a number of it."""
    seen = []

    def shaping(y):
        seen.append(y)
        return ranks(y)

    opt = zojax.zoar(MU, K, key=0, history_size=0, shaping=shaping)
    state = opt.init(X)
    v = (np.asarray(opt.ask(state, X)) - X) / MU
    found, state = opt.update(None, state, X, values=[3.0, np.inf, 9.0, 4.0])
    r = np.array([0, np.nan, 2, 1]) / 2 - 0.5
    r = np.where(np.isnan(r), 0, r)  # of three values, whose mean is 0
    np.testing.assert_allclose(found, r @ v / (3 * MU), rtol=1e-4, atol=1e-5)
    assert int(state.log.num_nonfinite) == 1
    assert np.isinf(state.log.query_values[1, 0])


@pytest.mark.parametrize("name", WITH_PARAMS)
def test_shaped_values_have_no_f_of_params_among_them(name):
    with pytest.raises(ValueError, match=r"shaping must be None.*f\(params\)"):
        WITH_PARAMS[name](shaping=ranks)


def test_wrong_shapings_are_named():
    with pytest.raises(ValueError, match="shaping must be a function"):
        zojax.zoar(MU, K, key=0, shaping="ranks")
    with pytest.raises(ValueError, match=r"values of shape \(4, 1\), got \(4,\)"):
        step(zojax.zoar(MU, K, key=0, shaping=lambda y: y[:, 0]), value_fn)


# -- clip ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["central", "zoar", "projection", "dap, forward"])
def test_a_bound_that_is_not_met_changes_nothing(name):
    found, _ = step(ALL[name](clip=1e6), value_fn)
    expected, _ = step(ALL[name](), value_fn)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_an_outlier_moves_no_further_than_the_bound(name):
    """|g| <= sum |w_k| |v_k| <= bound sqrt(d) (twice that where rows are not one)."""
    steep = lambda x: jnp.where(jnp.sum(x) > 15.0, 1e8, 0.0)
    bounded, _ = step(ALL[name](clip=1.0), steep)
    free, _ = step(ALL[name](), steep)
    assert 0 < float(optax.tree.norm(bounded)) <= 2 * 2 * np.sqrt(6)
    assert float(optax.tree.norm(free)) > 1e6


def test_a_bound_in_a_history_by_hand():
    """Both parts: (y - m) / mu of each step, (m_n - b) / mu_n of each record."""
    bound, mus = 2.0, [0.5, 0.25]
    opt = zojax.zoar(
        lambda count: jnp.where(count == 0, *mus),
        2,
        key=0,
        history_size=1,
        sampler=rademacher(),
        clip=bound,
    )
    state, v, values = opt.init(X), [], np.array([[5.0, 1.0], [100.0, 102.0]])
    for mu, y in zip(mus, values, strict=True):
        v.append((np.asarray(opt.ask(state, X)) - X) / mu)
        found, state = opt.update(None, state, X, values=y)
    m, b = values.mean(axis=1), values.mean()
    expected = 0.0
    for n, mu in enumerate(mus):
        own = np.clip((values[n] - m[n]) / mu, -bound, bound)
        level = np.clip((m[n] - b) / mu, -bound, bound)
        expected = expected + (own + level) @ v[n] / 4
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# -- query keys ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chunk_size"), [*((name, None) for name in QUERIED), ("central", 1)]
)
def test_a_value_fn_that_names_query_key_gets_one_a_direction(name, chunk_size):
    """Both sides share it, f(params) has its own, a new step new ones."""
    draw = lambda x, query_key: jax.random.uniform(query_key)
    opt = ALL[name](chunk_size=chunk_size)
    _, first = step(opt, draw)
    _, second = opt.update(None, first, X, value_fn=draw)
    seen = []
    for log in (first.log, second.log):
        values = np.asarray(log.query_values)
        np.testing.assert_array_equal(values, values[:, :1] * np.ones_like(values))
        seen += values[:, 0].tolist()
        if log.value_at_params is not None:
            seen.append(float(log.value_at_params))
    assert len(set(seen)) == len(seen)


def test_query_keys_do_not_depend_on_chunks_and_devices():
    draw = lambda x, query_key: jax.random.uniform(query_key) + jnp.sum(x)
    kind = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4,), ("queries",), (kind,), devices=jax.devices()[:4])
    opts = [
        zojax.zoar(MU, 8, key=0, sampler=rademacher(), history_size=0, **options)
        for options in ({}, {"chunk_size": 3}, {"axis_name": "queries"})
    ]
    with jax.set_mesh(mesh):
        found = [jax.jit(lambda o=opt: step(o, draw)[1].log)() for opt in opts]
    values = [jax.device_get(log.query_values) for log in found]
    for other in values[1:]:
        np.testing.assert_allclose(other, values[0], rtol=1e-6)


def test_a_query_key_of_the_callers_own():
    """An extra arg of that name is the caller's, the same at all queries."""
    draw = lambda x, query_key: jax.random.uniform(query_key)
    _, state = step(ALL["mean"](), draw, query_key=jax.random.key(3))
    expected = jax.random.uniform(jax.random.key(3))
    np.testing.assert_array_equal(state.log.query_values, np.full((K, 1), expected))
    V = zojax.Directions(sphere(), 0, 3)
    values, _ = zojax.evaluate(lambda x, query_key: draw(x, query_key), X, V, MU)
    assert len(set(values[:, 0].tolist())) == 3


@pytest.mark.parametrize("word", ["value", "values"])
@pytest.mark.parametrize("name", ALL)
def test_words_that_update_keeps_are_refused(name, word):
    """An extra arg called value was ignored, or taken for f(params)."""
    scaled = {
        "value": lambda x, value=1.0: value * value_fn(x),
        "values": lambda x, values=1.0: values * value_fn(x),
    }[word]
    with pytest.raises(ValueError, match=f"names .'{word}'.*rename the argument"):
        step(ALL[name](), scaled)


# -- the log ---------------------------------------------------------------------------


def test_the_log_by_hand():
    opt = zojax.zoar(MU, 4, key=0, history_size=1)
    state = opt.init(X)
    assert np.isinf(state.log.query_best)
    _, state = opt.update(None, state, X, values=[3.0, 5.0, np.nan, 4.0])
    log = state.log
    np.testing.assert_array_equal(log.query_values[:, 0], [3, 5, np.nan, 4])
    np.testing.assert_allclose(log.query_mean, 4)
    np.testing.assert_allclose(log.query_spread, np.std([3, 5, 4]), rtol=1e-6)
    assert (float(log.query_best), int(log.num_nonfinite)) == (3, 1)
    _, state = opt.update(None, state, X, values=[7.0, 7.0, 7.0, 7.0])
    assert (float(state.log.query_spread), float(state.log.query_best)) == (0, 3)
    _, state = opt.update(None, state, X, values=[np.nan] * 4)
    assert (float(state.log.query_mean), int(state.log.num_nonfinite)) == (7, 5)


def test_the_value_at_params_may_be_the_best():
    opt = zojax.two_point(MU, 2, key=0)
    _, state = opt.update(None, opt.init(X), X, values=[1.0, 5.0, 6.0])
    assert float(state.log.value_at_params) == float(state.log.query_best) == 1


@pytest.mark.parametrize("huge", [2e38, -3e38])
def test_moments_of_huge_values(huge):
    """Finite values have a finite mean and spread."""
    values = np.float32([huge, huge, -huge / 4, huge / 2])
    opt = zojax.zoar(MU, 4, key=0)
    updates, state = opt.update(None, opt.init(X), X, values=values)
    log = state.log
    np.testing.assert_allclose(log.query_mean, np.mean(np.float64(values)), rtol=1e-5)
    np.testing.assert_allclose(log.query_spread, np.std(np.float64(values)), rtol=1e-5)
    assert np.isfinite(updates).all()


def test_both_stages_are_in_the_log():
    opt = zojax.dap(MU, 5, key=0, split=0.4, difference="central")
    _, state = opt.update(
        None, opt.init(X), X, values=(np.arange(4.0), 10 + np.arange(6.0))
    )
    expected = [[0, 1], [2, 3], [10, 11], [12, 13], [14, 15]]
    np.testing.assert_array_equal(state.log.query_values, expected)


# -- value_and_grad --------------------------------------------------------------------


def loss(params, x, scale=1.0):
    value = scale * jnp.sum((params["w"] * x - 1.0) ** 2)
    return value, {"largest": jnp.max(params["w"])}


PARAMS = {"w": jnp.linspace(0.5, 1.5, 4)}


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_as_jax_value_and_grad(difference):
    """K = d orthogonal directions: the gradient, up to mu; aux as in jax."""
    twin = zojax.value_and_grad(
        loss, 1e-3, 4, sampler=orthogonal(), difference=difference, has_aux=True
    )
    x = jnp.arange(4.0)
    (value, aux), g = jax.jit(twin)(PARAMS, jax.random.key(0), x, scale=2.0)
    (expected, _), gradient = jax.value_and_grad(loss, has_aux=True)(PARAMS, x, 2.0)
    np.testing.assert_allclose(g["w"], gradient["w"], rtol=0.02, atol=0.05)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    at_params = difference == "forward"
    largest = 1.5 if at_params else float(aux["largest"])
    np.testing.assert_allclose(aux["largest"], largest)


def test_it_is_the_step_of_two_point():
    """With the key of that step, to the bit, clip and chunks among the settings."""
    options = {"difference": "leave_one_out", "clip": 3.0, "chunk_size": 2}
    f = lambda p: loss(p, 2.0)[0]
    opt = zojax.two_point(MU, 4, key=5, **options)
    expected, state = opt.update(None, opt.init(PARAMS), PARAMS, value_fn=f)
    twin = zojax.value_and_grad(f, MU, 4, **options)
    value, found = twin(PARAMS, jax.random.fold_in(jax.random.key(5), 0))
    np.testing.assert_array_equal(found["w"], expected["w"])
    np.testing.assert_array_equal(value, state.log.query_mean)


def test_a_trainer_that_knows_only_gradients():
    """train(model, batch) with a function of the shape of jax.value_and_grad."""
    opt, params = optax.adam(0.05), {"w": jnp.zeros(4)}
    twin = jax.jit(
        zojax.value_and_grad(lambda p, x: loss(p, x)[0], 1e-2, 8, sampler=rademacher())
    )

    def train(value_and_grad, params, batches):
        state = opt.init(params)
        for n, x in enumerate(batches):
            _, grads = value_and_grad(params, jax.random.key(n), x)
            updates, state = opt.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    after = train(twin, params, [jnp.ones(4)] * 150)
    np.testing.assert_allclose(after["w"], 1, atol=0.1)


def test_the_twin_hands_out_query_keys():
    """To a value_fn that names them and was given none."""
    draw = lambda p, scale, query_key: scale * jax.random.uniform(query_key)
    twin = zojax.value_and_grad(draw, MU, 4, difference="mean")
    _, g = twin(PARAMS, 0, 3.0)
    assert float(optax.tree.norm(g)) > 0
    _, g = twin(PARAMS, 0, 3.0, query_key=jax.random.key(1))
    assert float(optax.tree.norm(g)) == 0


def test_the_twin_checks_its_arguments():
    for options, match in (
        ({"difference": "none"}, "difference must be one of"),
        ({"clip": -1.0}, "clip must be a number > 0"),
        ({"has_aux": 1}, "has_aux must be True or False"),
        ({"shaping": ranks}, "shaping must be None"),
        ({"chunk_size": 0}, "chunk_size must be an int >= 1"),
    ):
        with pytest.raises(ValueError, match=match):
            zojax.value_and_grad(value_fn, MU, 4, **options)
    with pytest.raises(ValueError, match="smoothing must be a number > 0"):
        zojax.value_and_grad(value_fn, 0.0, 4)
    with pytest.raises(ValueError, match="with difference='mean'"):
        zojax.value_and_grad(value_fn, MU, 1, difference="mean")
    with pytest.raises(ValueError, match="key must be"):
        zojax.value_and_grad(value_fn, MU, 2)(X, "seed")
