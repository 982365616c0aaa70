"""Steps outside of jit: nothing is compiled after the first, and memory stays flat."""

import gc
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ESTIMATORS
from test_common import build, incoming, quick_jit

import zojax
from zojax.perturbations import gaussian, lazy, low_rank, rademacher

# Programs on their way to the compiler, or to the cache that the suite shares.
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kwargs: (
        COMPILED.append(event) if "jaxpr_to_mlir_module" in event else None
    )
)


def value_fn(x):
    return jnp.sum((x - 2.0) ** 2)


def compilations_of_steps(opt, x, f, updates=None, number=4):
    """How many programs each step compiles."""
    state, counts = opt.init(x), []
    for _ in range(number):
        before = len(COMPILED)
        _, state = jax.block_until_ready(opt.update(updates, state, x, value_fn=f))
        counts.append(len(COMPILED) - before)
    return counts


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_first_step_compiles_all(name):
    x, opt = jnp.arange(8.0), build(name)
    first, *others = compilations_of_steps(opt, x, value_fn, incoming(name, x))
    assert first > 0 or name != "forward"  # the listener counts
    assert others == [0, 0, 0]


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("sampler", [gaussian(), low_rank(1), lazy(rademacher())])
def test_of_large_leaves_and_a_jitted_objective(sampler, chunk_size):
    """Draws of large leaves take turns; the objective is a program of its own."""
    x = jnp.ones((600, 500))
    f = jax.jit(lambda x: jnp.mean(zojax.materialize(x) ** 2))
    opt = zojax.two_point(1e-2, 4, key=0, sampler=sampler, chunk_size=chunk_size)
    assert compilations_of_steps(opt, x, f, number=3)[1:] == [0, 0]


def test_parts_compile_once():
    """evaluate, combine, estimate and add_directions, in chunks."""
    x = jnp.ones((4, 3))

    def parts(n):
        V = zojax.Directions(rademacher(), n, 4, 3)
        zojax.evaluate(value_fn, x, V, 0.1)
        zojax.combine(jnp.ones(4), x, V)
        weigh = lambda y: zojax.weights.mean_baseline(y[:, 0], 0.1)
        zojax.estimate(value_fn, x, V, 0.1, weigh)
        zojax.queries.add_directions(x, jnp.ones(4), V)
        zojax.queries.map_directions(jnp.sum, x, V)

    parts(0)
    before = len(COMPILED)
    parts(1)
    assert len(COMPILED) == before


@pytest.mark.parametrize("name", ["leave_one_out", "zoar_replay", "dap_replay"])
def test_memory_stays_flat(name):
    """Nothing of a step is kept: 5 to 11 MB were, of each."""
    x, opt = jnp.arange(8.0), build(name)
    state = opt.init(x)

    def run(number):
        nonlocal state
        for _ in range(number):
            _, state = opt.update(None, state, x, value_fn=value_fn)
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(jax.live_arrays()), pages * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    arrays, before = run(3)
    arrays_after, after = run(15)
    assert arrays_after == arrays
    assert after - before < 15e6  # 15 steps; less than 1 MB a step


@pytest.mark.parametrize("name", ["leave_one_out", "zoar_replay", "low_rank", "lazy"])
def test_eager_is_jitted(name):
    """Loops in Python and loops in a program take the same step."""
    x, opt = jnp.arange(8.0), build(name)
    state = opt.init(x)
    update = lambda s: opt.update(None, s, x, value_fn=value_fn)
    for _ in range(2):
        eager, after = update(state)
        jitted, state = quick_jit(update)(state)
        np.testing.assert_allclose(eager, jitted, rtol=2e-3, atol=2e-3)
        log, expected = after.log.query_values, state.log.query_values
        np.testing.assert_allclose(log, expected, rtol=1e-5)


def test_a_numpy_objective_runs_where_one_point_at_a_time_is_asked():
    """Outside of jit and with chunk_size=1 the points are plain arrays."""
    f = lambda x: float(np.sum((np.asarray(x) - 2.0) ** 2))
    x = jnp.arange(8.0)
    opt = zojax.zoar(0.1, 4, key=0, history_size=0, chunk_size=1)
    found, _ = opt.update(None, opt.init(x), x, value_fn=f)
    expected, _ = opt.update(None, opt.init(x), x, value_fn=value_fn)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
