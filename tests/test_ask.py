"""Asking and telling: every estimator, its objective called by somebody else."""

import copy
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from registry import ESTIMATORS
from test_common import EAGER, build, incoming, quick_jit, tree
from test_eager import COMPILED

import zojax
from zojax.perturbations import gaussian, rademacher

LIMIT = -0.91  # a little above tree() itself


def simulate(params):
    """A simulator in numpy: about a fifth of the points near tree() fail."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(params)]
    x = np.concatenate(leaves)
    failed = x @ np.cos(np.arange(len(x))) > LIMIT
    return np.float32(np.nan if failed else np.sum((x - 2) ** 2))


def one_by_one(points):
    """The values of stacked points, as a list of floats."""
    number = len(jax.tree.leaves(points)[0])
    at = lambda i: jax.tree.map(lambda x: np.asarray(x)[i], points)
    return [float(simulate(at(i))) for i in range(number)]


def value_fn(params):
    """The same simulator, called by JAX."""
    result = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.pure_callback(simulate, result, params, vmap_method="sequential")


def ask_all(opt, state, params, updates=None, ask=None):
    """The values of all rounds of a step."""
    values = []
    for _ in range(opt.num_rounds):
        points = (ask or opt.ask)(state, params, *values, updates=updates)
        values.append(one_by_one(points))
    return values


def assert_close(found, expected, tolerance=1e-6):
    """To a share of the largest entry of each leaf."""

    def leaf(x, y):
        scale = tolerance * max(1.0, np.max(np.abs(y), initial=0, where=y == y))
        np.testing.assert_allclose(x, y, rtol=0, atol=scale)

    jax.tree.map(leaf, *jax.device_get((found, expected)))


def descend(params, updates):
    return jax.tree.map(lambda p, u: p - 1e-4 * u, params, updates)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_told_is_called(name):
    """20 steps, NaN among the values: the update and the state of value_fn.

    Nothing is kept between ask and update: what is loaded from a file goes on.
    """
    opt, params = build(name), tree()
    updates = incoming(name, params)
    called = quick_jit(
        lambda params, state: opt.update(updates, state, params, value_fn=value_fn)
    )
    told = lambda params, state, values: opt.update(
        updates, state, params, values=values
    )
    ask = opt.ask
    if name not in EAGER:  # some do both outside of jit, as people do
        ask, told = quick_jit(ask), quick_jit(told)
    state = opt.init(params)
    for n in range(20):
        values = ask_all(opt, state, params, updates, ask)
        assert sum(map(len, values)) == ESTIMATORS[name].num_queries
        expected = called(params, state)
        if n == 10:
            saved = pickle.dumps(jax.tree.map(np.asarray, (state, params)))
            state, params = pickle.loads(saved)
            again = ask_all(opt, state, params, updates, ask)
            np.testing.assert_array_equal(*map(np.concatenate, (again, values)))
        found, state = told(params, state, values)
        assert_close((found, state), expected)
        params = descend(params, found)
    failed = int(optax.tree.get(state, "num_nonfinite"))
    assert 0 < failed < 20 * ESTIMATORS[name].num_queries


KILLED = ["zoar"]


def first_asked(name, folder):
    """Two steps, then a third that is asked and never told: what was saved."""
    opt, params = build(name), tree()
    state = opt.init(params)
    for _ in range(2):
        values = ask_all(opt, state, params)
        updates, state = opt.update(None, state, params, values=values)
        params = descend(params, updates)
    saved = jax.tree.map(np.asarray, (state, params))
    (Path(folder) / name).write_bytes(pickle.dumps(saved))
    return opt, opt.ask(state, params), saved


def test_killed_between_ask_and_update(tmp_path):
    """kill -9, then another process goes on from the file with the same points."""
    code = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]; import test_ask;"
        "[test_ask.first_asked(n, sys.argv[1]) for n in test_ask.KILLED];"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(tmp_path), str(here), str(here.parent)]
    ended = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert ended.returncode == -signal.SIGKILL
    (tmp_path / "unbroken").mkdir()
    for name in KILLED:
        opt, points, expected = first_asked(name, tmp_path / "unbroken")
        state, params = pickle.loads((tmp_path / name).read_bytes())
        jax.tree.map(np.testing.assert_array_equal, (state, params), expected)
        jax.tree.map(np.testing.assert_array_equal, opt.ask(state, params), points)


def test_points_are_those_of_the_definition():
    """theta first, then theta + mu v_k, from the sampler's rows; bfloat16 too."""
    sampler, params = rademacher(), {"a": jnp.arange(3.0), "b": jnp.ones(2, "bfloat16")}
    opt = zojax.two_point(0.5, 2, key=3, sampler=sampler)
    points = opt.ask(opt.init(params), params)
    step_key = jax.random.fold_in(jax.random.key(3), 0)
    for name, p in params.items():
        rows = [sampler(step_key, k, 2, params)[name] for k in range(2)]
        expected = np.stack([p, *(p + 0.5 * row for row in rows)])
        assert points[name].dtype == p.dtype
        np.testing.assert_array_equal(points[name], expected)


def test_sides_of_a_pair_stand_side_by_side():
    opt = zojax.zoar(0.25, 3, key=0, sampler=rademacher(), symmetric=True)
    x = jnp.zeros(5)
    points = opt.ask(opt.init(x), x)
    assert points.shape == (6, 5)
    np.testing.assert_array_equal(points[0::2], -points[1::2])


def test_a_known_value_is_not_asked():
    """value= saves the query at params; beside values= it is for what follows."""
    x, opt = jnp.ones(3), zojax.two_point(1e-2, 4, key=0)
    state, f = opt.init(x), lambda x: jnp.sum(x**2)
    values = jax.vmap(f)(opt.ask(state, x))
    called = opt.update(None, state, x, value_fn=f, value=f(x))
    told = opt.update(None, state, x, values=values, value=100.0)
    assert_close(told, called, 1e-5)


def test_a_plateau_after_an_estimator_that_is_told():
    """What follows in the chain sees value=."""
    estimator = zojax.zoar(1e-2, 4, key=0)
    chain = optax.chain(
        estimator, optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)
    )
    x = jnp.ones(3)
    state = chain.init(x)
    for _ in range(6):
        values = np.full(4, 2.0)
        _, state = chain.update(None, state, x, values=values, value=jnp.array(1.0))
    assert float(optax.tree.get(state, "scale")) < 1
    assert float(optax.tree.get(state, "query_best")) == 2


def test_asking_inside_jit_and_vmap():
    """ask is a pure function of state and params."""
    opt, xs = zojax.zoar(1e-2, 4, key=0), jnp.arange(6.0).reshape(2, 3)
    states = jax.vmap(opt.init)(xs)
    together = jax.jit(jax.vmap(opt.ask))(states, xs)
    alone = opt.ask(opt.init(xs[1]), xs[1])
    np.testing.assert_allclose(together[1], alone, rtol=1e-6)
    values = jnp.sum(together**2, axis=-1)
    updates, _ = jax.vmap(
        lambda state, x, values: opt.update(None, state, x, values=values)
    )(states, xs, values)
    expected, _ = opt.update(None, opt.init(xs[1]), xs[1], values=values[1])
    np.testing.assert_allclose(updates[1], expected, rtol=1e-4, atol=1e-4)


def test_eager_steps_compile_nothing_after_the_first():
    """Asked and told from a loop in Python, whatever the chunks."""
    opt = zojax.zoar(1e-2, 4, key=0, chunk_size=1, storage="replay")
    x = jnp.ones(5)
    state = opt.init(x)

    def step(x, state):
        values = [float(np.sum(p**2)) for p in np.asarray(opt.ask(state, x))]
        updates, state = opt.update(None, state, x, values=values)
        return x - 1e-3 * updates, state

    x, state = step(*step(x, state))
    before = len(COMPILED)
    assert before > 0  # the listener counts
    for _ in range(3):
        x, state = step(x, state)
    assert len(COMPILED) == before


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.ones(3), "values must be 5 real numbers"),
        (np.ones((5, 1)), "values must be 5 real numbers"),
        (np.ones(5) * 1j, "values must be 5 real numbers"),
        ((np.ones(5), np.ones(5)), r"those of 1 round\(s\), got 2"),
        ([None] * 5, "values must be real numbers"),
        (1.0, "values must be 5 real numbers"),
    ],
)
def test_wrong_values_are_named(values, match):
    opt, x = zojax.two_point(1e-2, 4, key=0), jnp.ones(3)
    with pytest.raises(ValueError, match=match):
        opt.update(None, opt.init(x), x, values=values)


def test_wrong_calls_are_named():
    opt, x = zojax.dap(1e-2, 4, key=0), jnp.ones(3)
    state, first = opt.init(x), np.ones(3)
    with pytest.raises(ValueError, match=r"value_fn=.*or values=.*got neither"):
        opt.update(None, state, x)
    with pytest.raises(ValueError, match="got both"):
        opt.update(None, state, x, value_fn=jnp.sum, values=(first, np.ones(2)))
    with pytest.raises(ValueError, match=r"those of 2 round\(s\), got 1"):
        opt.update(None, state, x, values=first)
    with pytest.raises(ValueError, match=r"of earlier rounds, of 2 in all, got 2"):
        opt.ask(state, x, first, np.ones(2))
    with pytest.raises(ValueError, match="params=None"):
        opt.ask(state, None)
    guided = zojax.dap(1e-2, 4, key=0, guide="updates")
    with pytest.raises(ValueError, match='updates must not be None with guide="upd'):
        guided.ask(guided.init(x), x)


def test_a_copy_can_be_asked():
    """The pair that optax sees, and two more attributes, also of a copy."""
    opt, x = zojax.dap(1e-2, 4, key=0), jnp.ones(3)
    init, update = opt
    assert isinstance(opt, optax.GradientTransformationExtraArgs)
    assert (init, update) == (opt.init, opt.update)
    other = copy.copy(opt)
    assert other.num_rounds == 2
    np.testing.assert_array_equal(other.ask(other.init(x), x), opt.ask(opt.init(x), x))


def test_directions_over_a_mesh_axis_can_be_told():
    """The points do not depend on the axis; their sum is spread over it."""
    kind = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4,), ("queries",), (kind,), devices=jax.devices()[:4])
    alone = zojax.two_point(1e-2, 8, key=0, sampler=gaussian())
    spread = zojax.two_point(1e-2, 8, key=0, sampler=gaussian(), axis_name="queries")
    x = jnp.arange(5.0)
    state = alone.init(x)
    with jax.set_mesh(mesh):
        points = spread.ask(state, x)
        values = jnp.sum(points**2, axis=1)
        found, _ = spread.update(None, state, x, values=values)
    np.testing.assert_array_equal(points, alone.ask(state, x))
    expected, _ = alone.update(None, state, x, values=values)
    np.testing.assert_allclose(jax.device_get(found), expected, rtol=1e-4, atol=1e-4)
