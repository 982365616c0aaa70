"""Hostile objectives in one table: never a corrupt state, always a word."""

import concurrent.futures
import functools
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_common import all_finite, build, quick_jit

import zojax
from zojax.perturbations import rademacher

X = jnp.linspace(-1, 1, 8)
NAMES = ["forward", "central", "leave_one_out", "zoar_replay", "dap"]
NAMES += ["aligned_projection", "reinforce"]
bowl = lambda x: jnp.sum((x - 2.0) ** 2)

# What the state says of two steps of an objective: steps without a difference, whether
# there were values that are not finite, and whether params move.
ANSWERS = {
    "NaN": (lambda x: jnp.nan * bowl(x), 0, True, False),
    "inf": (lambda x: jnp.inf * bowl(x), 0, True, False),
    "-inf": (lambda x: -jnp.inf * bowl(x), 0, True, False),
    "some NaN": (lambda x: jnp.where(x[0] > -1.0, jnp.nan, bowl(x)), 0, True, None),
    "constant": (lambda x: 0 * bowl(x) + 3.0, 2, False, False),
    "huge constant": (lambda x: 0 * bowl(x) - 3e38, 2, False, False),
    "a Python number": (lambda x: 3.0, 2, False, False),
    "huge": (lambda x: 3e38 * jnp.tanh(bowl(x) - 38), 0, False, True),
    "huge, both signs": (lambda x: 3e38 * jnp.sign(x[0] + 1.0), None, False, None),
    "lost to rounding": (lambda x: 1e4 + 1e-5 * bowl(x), 2, False, False),
    "tiny": (lambda x: 1e-30 * bowl(x), 0, False, True),
    "subnormal": (lambda x: 1e-42 * bowl(x), None, False, None),
    "integers": (lambda x: jnp.round(10 * bowl(x)).astype(jnp.int32), 0, False, True),
    "bfloat16": (lambda x: bowl(x).astype(jnp.bfloat16), 0, False, True),
    "overflows": (lambda x: jnp.exp(3.0 * bowl(x)), None, None, None),
}


# Answers of other types than the float32 of the others, which share a program.
OTHERS = ("a Python number", "integers", "bfloat16")
SHARED = [bowl, *(f for kind, (f, *_) in ANSWERS.items() if kind not in OTHERS)]


@functools.cache
def step_of(name, kind):
    """(state, which) -> (updates, state): which of SHARED, or 1 for one of OTHERS."""
    opt = build(name)

    def shared(state, which):
        f = lambda x: jax.lax.switch(which, SHARED, x)
        return opt.update(None, state, X, value_fn=f)

    def own(state, which):
        f = ANSWERS[kind][0] if which else bowl
        return opt.update(None, state, X, value_fn=f)

    return jax.jit(own, static_argnums=1) if kind in OTHERS else jax.jit(shared)


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_leaves_a_clean_state_and_a_word(name, kind):
    f, flat, not_finite, moves = ANSWERS[kind]
    step = step_of(name, kind if kind in OTHERS else None)
    which = 1 if kind in OTHERS else SHARED.index(f)
    state = build(name).init(X)
    for _ in range(2):
        updates, state = step(state, which)
        assert all_finite(updates)
        log = state.log._replace(query_values=None, query_best=None)
        assert all_finite(state._replace(log=log))
    log = state.log
    if flat is not None:
        assert int(log.num_flat) == flat
    if not_finite is not None:
        assert (int(log.num_nonfinite) > 0) == not_finite
    if moves is not None:
        assert bool(jnp.any(updates != 0)) == moves
    # The next step of a well-behaved objective is a step.
    updates, after = step(state, 0)
    assert all_finite(updates)
    assert bool(jnp.any(updates != 0))
    assert int(after.count) == 3


def test_both_sides_alike_are_flat_though_values_differ():
    """f(theta + mu v) = f(theta - mu v) for each v, not for all v."""
    opt = zojax.two_point(0.1, 4, key=0, difference="central")
    _, state = opt.update(None, opt.init(X), X, values=[1.0, 1.0, 2.0, 2.0] * 2)
    assert int(state.log.num_flat) == 1
    assert float(state.log.query_spread) > 0
    _, state = opt.update(None, state, X, values=[1.0, 1.0, 2.0, 2.5] * 2)
    _, state = opt.update(None, state, X, values=[np.nan] * 8)
    assert int(state.log.num_flat) == 1


# -- what is no number: an error before anything is changed ----------------------------

REFUSED = {
    "a bool": (lambda x: bowl(x) > 0, "bool: cast it"),
    "a vector": (lambda x: x, "real scalar, got shape"),
    "one entry": (lambda x: bowl(x)[None], "real scalar, got shape"),
    "complex": (lambda x: 1j * bowl(x), "real scalar"),
    "None": (lambda x: None, "real scalar, got a NoneType"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_is_no_number_is_refused(name, kind):
    f, words = REFUSED[kind]
    opt = build(name)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda s: opt.update(None, s, X, value_fn=f), opt.init(X))


def callback(function, shape=()):
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return lambda x: jax.pure_callback(function, result, x, vmap_method="sequential")


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", ["forward", "zoar", "dap"])
def test_an_exception_in_a_callback_ends_the_step_alone(name, jit):
    """It is shown; the state before it takes the same step, at the same points."""
    opt, asked, broken = build(name), [], [True]

    def simulator(x):
        asked.append(np.array(x))
        if broken[0] and len(asked) == 3:
            raise RuntimeError("the simulator lost its licence")
        return np.float32(np.sum((x - 2) ** 2))

    update = lambda s: opt.update(None, s, X, value_fn=callback(simulator))
    update = quick_jit(update) if jit else update
    state = opt.init(X)
    kept = jax.tree.map(np.array, state)
    with pytest.raises(Exception, match="lost its licence"):
        jax.block_until_ready(update(state))
    chex.assert_trees_all_equal(jax.tree.map(np.array, state), kept)
    first, broken[0] = [point.tobytes() for point in asked], False
    asked.clear()
    updates, _ = jax.block_until_ready(update(state))
    assert set(first) <= {point.tobytes() for point in asked}
    expected, _ = opt.update(None, state, X, value_fn=bowl)
    np.testing.assert_allclose(updates, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("answer", [np.zeros(2, np.float32), "text", None])
def test_a_callback_that_answers_something_else(answer):
    """JAX compares with the promised result, and says so."""
    opt = zojax.zoar(0.1, 2, key=0)
    f = callback(lambda x: answer)
    with pytest.raises(Exception, match=r"(?i)shape|type|convert|Mismatched number"):
        jax.block_until_ready(opt.update(None, opt.init(X), X, value_fn=f))


def test_a_simulator_that_hangs_is_a_value_that_failed():
    """A time limit of the caller's turns it into NaN: left out, and counted."""
    pool = concurrent.futures.ThreadPoolExecutor(4)

    def simulate(x):
        if x[0] > -1.0:  # about half of the points
            time.sleep(0.6)
        return float(np.sum((x - 2) ** 2))

    def within(seconds, x):
        try:
            return np.float32(pool.submit(simulate, np.asarray(x)).result(seconds))
        except concurrent.futures.TimeoutError:
            return np.float32(np.nan)

    opt = zojax.zoar(0.1, 4, key=0, sampler=rademacher(), history_size=0)
    f = callback(lambda x: within(0.1, x))
    updates, state = jax.jit(lambda s: opt.update(None, s, X, value_fn=f))(opt.init(X))
    hung = int(state.log.num_nonfinite)
    assert 0 < hung < 4
    points = opt.ask(opt.init(X), X)
    values = np.asarray(jax.vmap(bowl)(points))
    values = np.where(points[:, 0] > -1.0, np.nan, values)
    expected, told = opt.update(None, opt.init(X), X, values=values)
    assert int(told.log.num_nonfinite) == hung
    np.testing.assert_allclose(updates, expected, rtol=1e-3, atol=1e-3)
    pool.shutdown(wait=True)


def test_exactly_the_promised_points_reach_a_batched_callback():
    """vmap_method="broadcast_all": one call of the host for all points of a round."""
    shapes = []

    def simulator(x):
        shapes.append(x.shape)
        return np.sum((x - 2) ** 2, axis=-1, dtype=np.float32)

    def f(x):
        result = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(simulator, result, x, vmap_method="broadcast_all")

    expected = {
        "mean": [(4, 8)],
        "central": [(4, 2, 8)],
        "forward": [(8,), (4, 8)],
    }
    for difference, calls in expected.items():
        opt = zojax.two_point(0.1, 4, key=0, difference=difference)
        step = jax.jit(lambda s, opt=opt: opt.update(None, s, X, value_fn=f)[0])
        jax.block_until_ready(step(opt.init(X)))
        shapes.clear()
        updates = jax.block_until_ready(step(opt.init(X)))
        assert sorted(shapes) == sorted(calls)
        assert float(optax.tree.norm(updates)) > 0
