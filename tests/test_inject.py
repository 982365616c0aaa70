"""inject_hyperparams: every factory, its numbers in the state, told by annotations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from registry import CALLING, ESTIMATORS, PLAIN
from test_common import all_finite, build, incoming, quick_jit, scaled, tree
from test_common import loss as squares
from test_eager import COMPILED

import zojax
from zojax.perturbations import gaussian, rademacher

X = jnp.linspace(-1, 1, 6)
loss = lambda x: jnp.sum((x - 5) ** 2)


def injected(monkeypatch, name):
    """A case of the registry whose factory has its numbers in the state."""
    factory = ESTIMATORS[name].factory
    own = zojax.inject_hyperparams(factory)
    monkeypatch.setattr(zojax, factory.__name__, own)
    return build(name)


def hyperparams(state):
    """Those of the part of a state that has them."""
    return optax.tree.get(state, "hyperparams")


# What may vary in a program; all else is static. None is no number, and stays out.
NUMBERS = {
    zojax.two_point: {"smoothing", "clip"},
    zojax.dap: {"smoothing", "clip", "decay"},
    zojax.aligned_projection: {"smoothing", "clip", "decay"},
    zojax.zoar: {"smoothing", "clip"},
    zojax.reinforce: {"smoothing", "clip"},
    zojax.mezo: {"learning_rate", "smoothing"},
    zojax.spsa: {"learning_rate", "smoothing"},
    zojax.second_order_spsa: {"smoothing", "min_curvature", "hessian_smoothing"},
    zojax.scale_by_radazo: {"b1", "b2", "eps"},
    zojax.radazo: {"learning_rate", "b1", "b2", "eps"},
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_program_of_all_numbers(monkeypatch, name):
    """The steps of the plain factory; other numbers are asked by the same program."""
    params, plain = tree(), build(name)
    opt, traces = injected(monkeypatch, name), []

    def counted(params):
        traces.append(1)
        return squares(params)

    def step_of(opt, f):
        @quick_jit
        def step(params, state):
            seen = incoming(name, params)
            updates, state = opt.update(seen, state, params, value_fn=f)
            return optax.apply_updates(params, scaled(updates)), state

        return step

    step, state = step_of(opt, counted), opt.init(params)
    found = hyperparams(state)
    absent = {"clip", "hessian_smoothing"} - ({"clip"} if name == "shaped" else set())
    assert set(found) == NUMBERS[ESTIMATORS[name].factory] - absent
    assert {x.dtype for x in found.values()} == {jnp.dtype("float32")}

    carry, expected = (params, state), (params, plain.init(params))
    for _ in range(2):
        carry, expected = step(*carry), step_of(plain, squares)(*expected)
    chex.assert_trees_all_close(carry[0], expected[0], rtol=1e-4, atol=1e-5)

    number = len(traces)
    params, state = carry
    same = step(params, jax.tree.map(jnp.copy, state))
    for key, x in hyperparams(state).items():
        hyperparams(state)[key] = 0.9 * x
    other = step(params, state)
    assert len(traces) == number
    assert step._cache_size() == 1
    assert all_finite(other[0])
    values = [optax.tree.get(s, "query_values") for _, s in (same, other)]
    if "smoothing" in found:
        assert not np.array_equal(*values)
    else:
        moved = [jax.tree.leaves(p)[0] for p, _ in (same, other)]
        assert not np.array_equal(*moved)


def test_numbers_are_those_of_the_registry():
    """So that a new factory has a line above."""
    assert set(NUMBERS) == {case.factory for case in ESTIMATORS.values()}


@pytest.mark.parametrize("factory", [*CALLING.values(), *PLAIN.values()])
def test_plain_transformations(factory):
    given = {"block_steps": (0.5,), "decay_towards_start": (0.5,)}
    args = given.get(factory.__name__, ())
    opt = zojax.inject_hyperparams(factory)(*args)
    state = opt.init(X)
    assert len(state.hyperparams) == len(args)
    plain = optax.with_extra_args_support(factory(*args))
    other = plain.init(X)
    for _ in range(2):
        updates, state = opt.update(X, state, X + 1, value_fn=loss)
        expected, other = plain.update(X, other, X + 1, value_fn=loss)
        chex.assert_trees_all_close(updates, expected)


def test_in_a_chain():
    """First in it, and an optax optimizer with numbers of its own after it."""
    opt = optax.chain(
        zojax.inject_hyperparams(zojax.zoar)(
            smoothing=0.05, num_directions=8, key=0, sampler=rademacher()
        ),
        zojax.inject_hyperparams(optax.adam)(0.1, b1=0.8),
    )
    traces = []

    def f(x):
        traces.append(1)
        return loss(x)

    @jax.jit
    def step(x, state):
        updates, state = opt.update(None, state, x, value_fn=f)
        return optax.apply_updates(x, updates), state

    x, state = X, opt.init(X)
    assert "learning_rate" in state[1].hyperparams
    for n in range(150):
        state[0].hyperparams["smoothing"] = jnp.float32(0.05 * 0.99**n)
        x, state = step(x, state)
        if n == 0:
            traced = len(traces)
    assert len(traces) == traced
    assert step._cache_size() == 1
    assert float(loss(x)) < 0.05 * float(loss(X))


@pytest.mark.parametrize("make", [zojax.mezo, zojax.spsa])
def test_a_learning_rate_keeps_the_dtypes_of_params(make):
    """Twice the rate is twice the step, where no two dtypes may meet."""
    opt = zojax.inject_hyperparams(make)(0.5, 0.1, key=0)
    params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2)}
    with jax.numpy_dtype_promotion("strict"):
        state = opt.init(params)
        f = lambda p: sum(jnp.sum(x.astype(jnp.float32)) for x in p.values())
        once, _ = opt.update(None, state, params, value_fn=f)
        state.hyperparams["learning_rate"] *= 2
        twice, _ = opt.update(None, state, params, value_fn=f)
    chex.assert_trees_all_equal_shapes_and_dtypes(once, params)
    chex.assert_trees_all_equal(twice, jax.tree.map(lambda u: 2 * u, once))
    plain, _ = make(0.5, 0.1, key=0).update(
        None, make(0.5, 0.1, key=0).init(params), params, value_fn=f
    )
    chex.assert_trees_all_equal(once, plain)


def test_radazo_on_mixed_moments():
    """Under x64 numbers are float64, and a float32 leaf keeps float32 moments."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2)}
        opt, plain = zojax.inject_hyperparams(zojax.radazo)(0.5), zojax.radazo(0.5)
        updates, state = opt.update(params, opt.init(params), params)
        expected, other = plain.update(params, plain.init(params), params)
    assert state.hyperparams["b1"].dtype == jnp.float64
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, expected)
    moments = [optax.tree.get(s, "m") for s in (state, other)]
    chex.assert_trees_all_equal_shapes_and_dtypes(*moments)


# -- a search --------------------------------------------------------------------------


def final(opt, state, steps=5):
    def step(carry, _):
        x, state = carry
        updates, state = opt.update(None, state, x, value_fn=loss)
        return (optax.apply_updates(x, updates), state), None

    return jax.lax.scan(step, (X, state), length=steps)[0][0]


def test_a_search_over_states():
    """One program of many runs equals the plain ones, one by one."""
    opt = zojax.inject_hyperparams(zojax.spsa)(1e-3, 0.1, key=0, num_directions=2)
    rates, widths = jnp.array([1e-3, 1e-2, 3e-2]), jnp.array([0.01, 0.1, 1.0])

    def run(rate, width):
        state = opt.init(X)
        state.hyperparams.update(learning_rate=rate, smoothing=width)
        return final(opt, state)

    together = jax.jit(jax.vmap(run))(rates, widths)
    for rate, width, x in zip(rates, widths, together, strict=True):
        plain = zojax.spsa(float(rate), float(width), key=0, num_directions=2)
        np.testing.assert_allclose(x, final(plain, plain.init(X)), rtol=1e-3)
    assert not np.allclose(together[1], together[2])


def test_a_search_over_factories():
    """The factory itself takes traced numbers, and keys."""

    def run(seed, width):
        make = zojax.inject_hyperparams(zojax.two_point)
        opt = optax.chain(make(width, 4, key=seed), optax.sgd(1e-2))
        return final(opt, opt.init(X))

    together = jax.jit(jax.vmap(run))(jnp.arange(2), jnp.array([0.1, 1.0]))
    opt = optax.chain(zojax.two_point(1.0, 4, key=1), optax.sgd(1e-2))
    np.testing.assert_allclose(together[1], final(opt, opt.init(X)), rtol=1e-3)


def test_a_schedule_shows_its_values():
    """As with optax's list of names: evaluated at the count before the step."""
    schedule = optax.linear_schedule(0.1, 0.2, 10)
    own = {"key": 3, "sampler": gaussian(), "history_size": 2}
    opt, plain = (
        f(schedule, 4, **own)
        for f in (zojax.inject_hyperparams(zojax.zoar), zojax.zoar)
    )
    state, other = opt.init(X), plain.init(X)
    for n in range(3):
        np.testing.assert_allclose(
            opt.ask(state, X), plain.ask(other, X), rtol=1e-6, atol=1e-6
        )
        updates, state = opt.update(None, state, X, value_fn=loss)
        expected, other = plain.update(None, other, X, value_fn=loss)
        np.testing.assert_allclose(state.hyperparams["smoothing"], 0.1 + 0.01 * n)
        chex.assert_trees_all_close(updates, expected, rtol=1e-3, atol=1e-3)


# -- outside of jit --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["central", "dap", "dap_updates", "mezo"])
def test_asking_and_telling(monkeypatch, name):
    """Points, keys and steps of the plain factory, round by round; compiled once."""
    plain = build(name)
    opt = injected(monkeypatch, name)
    seen = incoming(name, X)
    assert isinstance(opt, zojax.Estimator)
    assert opt.num_rounds == plain.num_rounds

    def step(opt, state):
        told = []
        for _ in range(opt.num_rounds):
            points = opt.ask(state, X, *told, updates=seen)
            asked = opt.ask_with_keys(state, X, *told, updates=seen)
            np.testing.assert_array_equal(asked.points, points)
            told.append([float(loss(x)) for x in points])
        updates, state = opt.update(seen, state, X, values=tuple(told))
        return updates, state, points, asked.keys

    state, other, counts = opt.init(X), plain.init(X), []
    for _ in range(3):
        before = len(COMPILED)
        updates, state, *found = step(opt, state)
        counts.append(len(COMPILED) - before)
        expected, other, *asked = step(plain, other)
        chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-4)
        chex.assert_trees_all_close(found, asked, rtol=1e-6)
    assert counts[1:] == [0, 0]
    hyperparams(state)["smoothing"] = jnp.float32(1.0)
    assert np.abs(step(opt, state)[2] - X).max() > 0.5


def test_steps_outside_of_jit_compile_once():
    opt = zojax.inject_hyperparams(zojax.zoar)(0.1, 4, key=0)
    state, counts = opt.init(X), []
    for n in range(4):
        before = len(COMPILED)
        _, state = opt.update(None, state, X, value_fn=loss)
        state.hyperparams["smoothing"] = jnp.float32(0.1 + n)
        counts.append(len(COMPILED) - before)
    assert counts[1:] == [0, 0, 0]


def test_an_objective_that_jax_cannot_call():
    estimator = zojax.inject_hyperparams(zojax.zoar)(0.05, 8, key=0)
    f = lambda x: float(np.sum((x - 1.0) ** 2))
    adam = optax.adam(0.1)
    own = zojax.external.optimize(f, np.zeros(4), estimator, adam, 30)
    plain = zojax.zoar(0.05, 8, key=0)
    same = zojax.external.optimize(f, np.zeros(4), plain, adam, 30)
    np.testing.assert_allclose(own.best_value, same.best_value, rtol=1e-4)


# -- what is a number ------------------------------------------------------------------


def test_numbers_keep_their_digits():
    """0.999 is 1 in bfloat16, where optax has numbers of the dtype of params."""
    params = jnp.ones(4, jnp.bfloat16)
    make = zojax.inject_hyperparams(zojax.aligned_projection)
    state = make(1, 2, key=0, decay=0.999, clip=np.float32(3)).init(params)
    assert float(state.hyperparams["decay"]) == np.float32(0.999)
    assert {x.dtype.name for x in state.hyperparams.values()} == {"float32"}
    assert set(state.hyperparams) == {"smoothing", "decay", "clip"}
    with jax.enable_x64(True):
        state = make(0.1, 2, key=0).init(params)
        assert float(state.hyperparams["decay"]) == 0.9


def test_functions_of_ones_own():
    """Annotations decide; without any optax does, by the value."""

    def annotated(
        mu: float | jax.Array, number: int, rate: optax.ScalarOrSchedule = 0.1
    ) -> optax.GradientTransformationExtraArgs:
        return optax.chain(zojax.zoar(mu, number, key=0), optax.sgd(rate))

    def bare(mu, rate):
        return optax.chain(zojax.zoar(mu, 4, key=0), optax.sgd(rate))

    for opt in (
        zojax.inject_hyperparams(annotated)(0.1, 4),
        zojax.inject_hyperparams(bare)(0.1, 0.1),
    ):
        state = opt.init(X)
        assert set(state.hyperparams) == {"mu", "rate"}
        _, state = jax.jit(lambda s, o=opt: o.update(None, s, X, value_fn=loss))(state)
    kept = zojax.inject_hyperparams(annotated, static_args="rate")(0.1, 4).init(X)
    assert set(kept.hyperparams) == {"mu"}


def test_arguments_are_checked():
    make = zojax.inject_hyperparams(zojax.zoar)
    assert make.__name__ == "zoar"
    for call, words in (
        (lambda: zojax.inject_hyperparams(3), "factory must be a function, got 3"),
        (
            lambda: zojax.inject_hyperparams(zojax.zoar, ["mu"]),
            r"static_args must be of \['smoothing', .*\], got \['mu'\]",
        ),
        (lambda: make(0.0, 4, key=0), "smoothing must be a number > 0"),
        (lambda: make(0.1, 4.0, key=0), "num_directions must be an int"),
        (lambda: make(True, 4, key=0), "smoothing must be a number"),
        (lambda: make(0.1, 4, key=0).update(None, None, None), "got params=None"),
        (lambda: make(0.1, 4, key=0).ask(None, None), "got params=None"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    opt = make(0.1, 4, key=0)
    state = opt.init(X)
    with pytest.raises(ValueError, match=r"update needs value_fn=.* neither"):
        opt.update(None, state, X)
    with pytest.raises(ValueError, match="4 real numbers"):
        opt.update(None, state, X, values=[1.0, 2.0])
    state.hyperparams["smoothing"] = jnp.float32(-1.0)
    with pytest.raises(ValueError, match="smoothing must be a number > 0"):
        opt.update(None, state, X, value_fn=loss)
