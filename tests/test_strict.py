"""Every public factory, on mixed dtypes, in all of JAX's strict modes at once."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from registry import ESTIMATORS
from test_common import all_finite, build, incoming, quick_jit

STRICT = {
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "NaN": lambda: jax.debug_nans(True),
    "checks": lambda: jax.enable_checks(True),
    "leaks": lambda: jax.checking_leaks(),
}
# Beside the strict modes: what else a process may have set.
SETTINGS = {
    "float32": lambda: contextlib.nullcontext(),
    "x64, threefry as it was": lambda: entered(
        [lambda: jax.enable_x64(True), lambda: jax.threefry_partitionable(False)]
    ),
}


@contextlib.contextmanager
def entered(contexts):
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context())
        yield


def tree():
    """Leaves of three widths (two without x64), a scalar, an empty one, None."""
    return {
        "w": jnp.linspace(-1, 1, 6, dtype=jnp.bfloat16).reshape(2, 3),
        "b": [jnp.asarray(0.5, jnp.float32), (jnp.zeros((0, 2), jnp.float32), None)],
        "c": jnp.ones(3, float),
    }


def loss(params):
    """Casts by itself, as strict modes ask of users."""
    squares = [
        jnp.sum((x.astype(jnp.float32) - 2) ** 2) for x in jax.tree.leaves(params)
    ]
    return sum(squares, jnp.zeros((), jnp.float32))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_step_in_all_strict_modes(name, setting):
    """Init, two steps and a question; the second step moves nothing to the device."""
    with entered([SETTINGS[setting], *STRICT.values()]):
        params, opt = tree(), build(name)
        seen = incoming(name, params)
        step = quick_jit(
            lambda state, params: opt.update(seen, state, params, value_fn=loss)
        )
        updates, state = step(opt.init(params), params)
        with jax.transfer_guard("disallow"):
            updates, state = step(state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        assert all_finite(updates)
        wide = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
        assert optax.tree.get(state, "query_mean").dtype == wide
        assert any(np.any(np.asarray(u, float)) for u in jax.tree.leaves(updates))
        jax.eval_shape(lambda s: opt.ask(s, params, updates=seen), state)


@pytest.mark.parametrize("mode", STRICT)
def test_the_modes_are_strict(mode):
    """Each of them refuses something, so that the test above can fail."""
    refused = {
        "dtype promotion": lambda: jnp.ones(2, jnp.bfloat16) + jnp.ones(2),
        "rank promotion": lambda: jnp.ones((2, 2)) + jnp.ones(2),
        "NaN": lambda: jnp.zeros(()) / jnp.zeros(()),
    }
    if mode not in refused:
        pytest.skip("no one line that it refuses")
    with STRICT[mode](), pytest.raises((ValueError, FloatingPointError)):
        refused[mode]()


@pytest.mark.parametrize("name", ["zoar_replay", "dap", "leave_one_out"])
def test_chunks_and_questions_under_the_old_threefry(name):
    """Random words of another layout: still the same points however they are asked."""
    with jax.threefry_partitionable(False):
        x, opt = jnp.arange(8.0), build(name)
        value_fn = lambda x: jnp.sum((x - 2) ** 2)
        state = opt.init(x)
        called, _ = quick_jit(lambda s: opt.update(None, s, x, value_fn=value_fn))(
            state
        )
        told = []
        for _ in range(opt.num_rounds):
            told.append(jax.vmap(value_fn)(opt.ask(state, x, *told)))
        found, _ = opt.update(
            None, state, x, values=tuple(told) if len(told) > 1 else told[0]
        )
        np.testing.assert_allclose(found, called, rtol=1e-4, atol=1e-4)
