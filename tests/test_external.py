"""Functions that JAX cannot call: pools, limits, failures, and runs that are killed."""

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pebble
import pytest
from test_common import build, incoming, tree

import zojax
from zojax.external import as_value_fn, command, optimize

START = np.zeros(4)
K = 8


def squares(x):
    return float(np.sum((x - 1.0) ** 2))


def zoar():
    return zojax.zoar(0.05, K, key=0)


def run(function, num_steps=5, estimator=None, **kwargs):
    estimator = zoar() if estimator is None else estimator
    return optimize(function, START, estimator, optax.adam(0.1), num_steps, **kwargs)


def lines(directory):
    text = (Path(directory) / "evaluations.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# -- what is asked ---------------------------------------------------------------------


# One of each way of asking: with and without f(params), both sides, two rounds.
WAYS = ["forward", "central", "leave_one_out", "zoar", "dap", "aligned_projection"]


@pytest.mark.parametrize("name", WAYS)
def test_points_and_keys_are_those_of_value_fn(name):
    """The objective is its key: what update() measures says which keys it gave."""
    opt, params = build(name), tree()
    updates, state = incoming(name, params), opt.init(params)

    def from_key(params, query_key):
        word = jax.random.key_data(query_key)[1] % jnp.uint32(65_521)
        return word.astype(jnp.float32)

    _, after = opt.update(updates, state, params, value_fn=from_key)
    values, measured = [], []
    for _ in range(opt.num_rounds):
        asked = opt.ask_with_keys(state, params, *values, updates=updates)
        plain = opt.ask(state, params, *values, updates=updates)
        kept = lambda x, at: None if x is None else at
        expected = jax.tree.map(kept, asked.points, plain, is_leaf=lambda x: x is None)
        assert_equal(asked.points, expected)
        values.append((asked.keys[:, 1] % np.uint32(65_521)).astype(np.float32))
        number = len(values[-1])
        assert all(len(x) == number for x in jax.tree.leaves(asked.points))
        measured.append(values[-1])
    found = optax.tree.get(after, "query_values")
    flat = np.concatenate(measured)
    # f(params), where it is asked, is the first and is not among them.
    at_params = optax.tree.get(after, "value_at_params")
    if at_params is not None:
        assert float(at_params) == flat[0]
        flat = flat[1:]
    np.testing.assert_array_equal(np.ravel(found), flat)


def test_frozen_leaves_are_not_copied():
    sampler = zojax.perturbations.restrict(
        zojax.perturbations.rademacher(), {"w": True, "table": False}
    )
    params = {"w": np.ones(3, np.float32), "table": np.zeros((100, 100), np.float32)}
    seen = []

    def function(point):
        seen.append(point["table"])
        return squares(point["w"])

    estimator = zojax.two_point(0.1, 4, key=0, sampler=sampler)
    optimize(function, params, estimator, optax.sgd(0.1), 1)
    assert all(table is seen[0] for table in seen)
    asked = estimator.ask_with_keys(estimator.init(params), params)
    assert asked.points["table"] is None


def test_ids_count_and_both_sides_share_a_key():
    seen = []

    def function(x, query_id, query_key):
        seen.append((query_id, tuple(map(int, query_key))))
        return squares(x)

    run(function, 3, zojax.two_point(0.1, 4, key=0, difference="central"))
    ids, keys = zip(*seen, strict=True)
    assert ids == tuple(range(24))
    assert keys[::2] == keys[1::2]
    assert len(set(keys)) == 12


@pytest.mark.parametrize("name", ["dap", "zoar", "central"])
def test_the_end_is_that_of_update_with_a_value_fn(name):
    estimator = {
        "dap": zojax.dap(0.05, K, key=0, guide="rough"),
        "zoar": zoar(),
        "central": zojax.two_point(0.05, 4, key=0, difference="central"),
    }[name]
    end = run(squares, 20, estimator)
    opt, x = optax.chain(estimator, optax.adam(0.1)), jnp.zeros(4)
    state = opt.init(x)
    step = jax.jit(
        lambda x, s: opt.update(None, s, x, value_fn=lambda x: jnp.sum((x - 1) ** 2))
    )
    for _ in range(20):
        updates, state = step(x, state)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(end.params, x, atol=1e-3)
    assert end.best_value == pytest.approx(squares(end.best_params), rel=1e-6)


def test_the_largest_value_is_wanted():
    least = run(squares, 30)
    most = run(lambda x: -squares(x), 30, maximize=True)
    assert_equal(most.params, least.params)
    assert most.best_value == -least.best_value
    np.testing.assert_array_equal(most.values, -least.values)


# -- failures --------------------------------------------------------------------------


def fails(x, query_id):
    if query_id % 5 == 0:
        raise ArithmeticError("the solver diverged")
    return np.nan if query_id % 7 == 0 else squares(x)


def test_failures_are_left_out_counted_and_written_down(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "zojax.external"):
        end = run(fails, directory=tmp_path)
    expected = [i for i in range(40) if i % 5 == 0 or i % 7 == 0]
    assert end.num_evaluations == 40
    assert end.num_failed == len(expected)
    assert end.num_timeouts == 0
    records = {record["id"]: record for record in lines(tmp_path)}
    assert sorted(records) == list(range(40))
    assert [i for i in records if records[i]["value"] is None] == expected
    assert records[5]["error"] == "ArithmeticError: the solver diverged"
    assert "in fails" in records[5]["traceback"]
    assert records[7]["error"] == "the value was nan"
    assert np.isfinite(end.params).all()
    (warning,) = caplog.records  # the others are told to those who listen
    assert "the solver diverged" in warning.getMessage()


def test_retries_until_it_succeeds(tmp_path):
    tries = {}

    def sometimes(x, query_id):
        tries[query_id] = tries.get(query_id, 0) + 1
        if tries[query_id] <= query_id % 3:
            raise OSError("licence server")
        return squares(x)

    end = run(sometimes, retries=1, directory=tmp_path)
    assert end.num_failed == sum(i % 3 == 2 for i in range(40))
    for record in lines(tmp_path):
        assert record["attempts"] == min(record["id"] % 3 + 1, 2)
    assert run(squares).num_failed == 0


def test_nothing_succeeded():
    with pytest.raises(RuntimeError, match=r"(?s)each of the first 8.*in <lambda>.*no"):
        run(lambda x: float("no"))


def slow(x, query_id):
    if query_id == 3:
        time.sleep(3600)
    return squares(x)


def test_late_workers_are_ended(tmp_path):
    """The limit is long beside what the others take, on a busy machine too."""
    with pebble.ProcessPool(2, context=multiprocessing.get_context("spawn")) as pool:
        end = run(slow, 2, executor=pool, timeout=8.0, directory=tmp_path)
    assert (end.num_evaluations, end.num_failed, end.num_timeouts) == (16, 1, 1)
    assert {r["id"] for r in lines(tmp_path) if r["timed_out"]} == {3}


def dies(x, query_id):
    if query_id == 3:
        os._exit(7)
    return squares(x)


def test_a_worker_that_died():
    spawn = multiprocessing.get_context("spawn")
    with pebble.ProcessPool(2, context=spawn) as pool:
        assert run(dies, 1, executor=pool).num_failed == 1
    with (
        ProcessPoolExecutor(2, mp_context=spawn) as pool,
        pytest.raises(RuntimeError, match="the pool broke"),
    ):
        run(dies, 1, executor=pool)


def test_late_threads_are_not_waited_for():
    """Two hang until the end; the others do the rest, and none is not enough."""
    stop = []

    def hangs(x, query_id):
        while query_id in (3, 11) and not stop:
            time.sleep(0.01)
        return squares(x)

    with ThreadPoolExecutor(3) as pool:
        end = run(hangs, 3, executor=pool, timeout=1.0)
        assert (end.num_failed, end.num_timeouts, end.num_evaluations) == (2, 2, 24)
        stop.append(True)

    stop.clear()
    with ThreadPoolExecutor(2) as pool:
        try:
            with pytest.raises(RuntimeError, match="all 2 workers hang"):
                run(hangs, 3, executor=pool, timeout=1.0)
        finally:
            stop.append(True)


PROGRAM = """
import json, os, sys, time
x = json.load(sys.stdin)
number = int(os.environ["ZOJAX_QUERY_ID"])
assert len(os.environ["ZOJAX_QUERY_KEY"].split()) == 2
if number == 2:
    sys.exit("no licence")
if number == 5:
    time.sleep(3600)
print("solved")
print(sum((v - 1.0) ** 2 for v in x))
"""


def test_a_program(tmp_path):
    program = command([sys.executable, "-c", PROGRAM])
    with ThreadPoolExecutor(4) as pool:
        where = {"executor": pool, "directory": tmp_path, "timeout": 8.0}
        end = run(program, 3, **where)
    assert (end.num_evaluations, end.num_failed, end.num_timeouts) == (24, 2, 1)
    by_id = {record["id"]: record for record in lines(tmp_path)}
    assert by_id[2]["error"].endswith("exit status 1: no licence")
    assert by_id[5]["timed_out"]
    assert "no value after 8 s" in by_id[5]["error"]
    np.testing.assert_allclose(by_id[0]["value"], end_of(by_id, 0), rtol=1e-5)


def end_of(by_id, i):
    """The value at the point that a fresh estimator asks for as number i."""
    opt = zoar()
    asked = opt.ask_with_keys(opt.init(jnp.zeros(4)), jnp.zeros(4))
    return squares(np.asarray(asked.points)[i])


def test_a_program_that_says_nothing():
    silent = command([sys.executable, "-c", "pass"])
    with pytest.raises(ValueError, match="printed nothing"):
        silent(START, query_id=0, query_key=np.zeros(2, np.uint32))


@pytest.mark.parametrize("kind", ["threads", "processes", "map"])
def test_any_pool_has_the_same_end(kind):
    expected = run(squares)
    if kind == "map":
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            found = run(squares, executor=pool.map)
    elif kind == "threads":
        with ThreadPoolExecutor(3) as pool:
            found = run(squares, executor=pool)
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=spawn) as pool:
            found = run(squares, executor=pool)
    assert_equal(found, expected)


# -- runs on disk ----------------------------------------------------------------------


def test_a_run_goes_on_and_asks_nothing_twice(tmp_path):
    calls = []

    def counted(x, query_id):
        calls.append(query_id)
        return squares(x)

    whole = run(squares, 6)
    first = run(counted, 4, directory=tmp_path)
    assert first.step == 4
    assert_equal(run(counted, 4, directory=tmp_path), first)
    assert len(calls) == 32
    assert_equal(run(counted, 6, directory=tmp_path), whole)
    assert calls == list(range(48))


@pytest.mark.parametrize("name", ["dap", "zoar"])
def test_interrupted_within_a_step(name, tmp_path):
    """Whatever was told is not asked again, in either of DAP's rounds."""
    estimator = zojax.dap(0.05, K, key=0) if name == "dap" else zoar()
    expected = run(squares, 3, estimator)
    calls = []

    def interrupted(x, query_id):
        if query_id not in calls and query_id % 3 == 2:
            calls.append(query_id)
            raise KeyboardInterrupt
        calls.append(query_id)
        return squares(x)

    for _ in range(100):
        try:
            end = run(interrupted, 3, estimator, directory=tmp_path)
            break
        except KeyboardInterrupt:
            continue
    assert_equal(end, expected)
    ids = [record["id"] for record in lines(tmp_path)]
    assert ids == list(range(expected.num_evaluations))


def test_a_line_that_was_cut_off(tmp_path):
    expected = run(squares, 3)
    run(squares, 2, directory=tmp_path)
    with open(tmp_path / "evaluations.jsonl", "a") as log:
        log.write('{"id": 16, "va')
    assert_equal(run(squares, 3, directory=tmp_path), expected)
    assert [record["id"] for record in lines(tmp_path)] == list(range(24))


def test_dtypes_are_kept(tmp_path):
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": np.ones(2, np.float32)}
    function = lambda p: squares(np.asarray(p["a"], np.float32)) + squares(p["b"])
    both = [
        optimize(function, params, zoar(), optax.sgd(1e-2), 2, directory=directory)
        for directory in (None, tmp_path)
    ]
    again = optimize(function, params, zoar(), optax.sgd(1e-2), 2, directory=tmp_path)
    for found in (*both, again):
        assert found.params["a"].dtype == jnp.bfloat16
        assert_equal(found, both[0])


def test_directories_of_other_runs(tmp_path):
    run(squares, 1, directory=tmp_path)
    with pytest.raises(ValueError, match="begun with other params"):
        optimize(squares, START + 1, zoar(), optax.adam(0.1), 2, directory=tmp_path)
    with pytest.raises(ValueError, match="begun with other params"):
        run(squares, 2, zojax.zoar(0.05, K, key=1), directory=tmp_path)

    def inner(x):
        with pytest.raises(ValueError, match="another process has open"):
            run(squares, 1, directory=tmp_path)
        return squares(x)

    assert run(inner, 2, directory=tmp_path).num_failed == 0


SCRIPT = """
import sys, time
import numpy as np, optax, zojax

def function(x, query_id, query_key):
    time.sleep(0.01)
    noise = np.random.default_rng(query_key).normal()
    if query_id % 10 == 9:
        raise ArithmeticError("diverged")
    return float(np.sum((x - 1.0) ** 2) + 0.01 * noise)

if __name__ == "__main__":
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(4) as pool:
        end = zojax.external.optimize(
            function, np.zeros(4), zojax.dap(0.05, 8, key=0), optax.adam(0.1), 30,
            executor=pool, directory=sys.argv[1],
        )
    print(end.params.tobytes().hex(), end.best_value, end.num_evaluations)
"""


def test_killed_at_any_moment(tmp_path):
    """kill -9 after so many lines of the log, three times; then to the end."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def start(directory):
        arguments = [sys.executable, script, tmp_path / directory]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

    expected = start("unbroken").communicate(timeout=120)[0]
    log = tmp_path / "killed" / "evaluations.jsonl"
    for number in (3, 71, 150):
        process = start("killed")
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_bytes().count(b"\n") >= number:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert start("killed").communicate(timeout=120)[0] == expected
    ids = sorted(record["id"] for record in lines(tmp_path / "killed"))
    assert ids == list(range(int(expected.split()[-1])))


# -- inside of a jitted step -----------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 3, 1])
def test_inside_jit(chunk_size):
    calls = []

    def counted(x):
        calls.append(x)
        return squares(x)

    opt = zojax.two_point(0.05, K, key=0, difference="central", chunk_size=chunk_size)
    x = jnp.zeros(4)
    state = opt.init(x)
    expected, _ = opt.update(None, state, x, value_fn=lambda x: jnp.sum((x - 1) ** 2))
    f = as_value_fn(counted)
    step = jax.jit(lambda s: opt.update(None, s, x, value_fn=f))
    found, _ = jax.block_until_ready(step(state))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert len(calls) == 2 * K
    assert all(x.shape == (4,) for x in calls)


def test_one_call_of_the_host_for_all_directions():
    batches = []

    def counting_map(function, items):
        batches.append(len(items))
        return map(function, items)

    f = as_value_fn(squares, executor=counting_map)
    opt, x = zoar(), jnp.zeros(4)
    jax.block_until_ready(
        jax.jit(lambda s: opt.update(None, s, x, value_fn=f))(opt.init(x))
    )
    assert batches == [K]


def test_keys_and_failures_inside_jit():
    def function(x, query_key):
        if int(query_key[1]) % 2:
            raise ArithmeticError("odd")
        return float(query_key[1] % np.uint32(65_521))

    opt, x = zojax.two_point(0.05, K, key=0), jnp.zeros(4)
    state, f = opt.init(x), as_value_fn(function)
    _, after = jax.jit(lambda s: opt.update(None, s, x, value_fn=f))(state)
    words = np.asarray(opt.ask_with_keys(state, x).keys)[:, 1]
    expected = np.where(words % 2, np.nan, words % np.uint32(65_521))
    found = np.concatenate(
        [[after.log.value_at_params], np.ravel(after.log.query_values)]
    )
    shown = np.isfinite(expected)
    np.testing.assert_array_equal(found[1:], expected[1:])
    assert int(after.log.num_nonfinite) == (~shown).sum()


# -- arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"timeout": 1.0}, "timeout must be None here"),
        ({"timeout": -1.0}, "timeout must be a number > 0"),
        ({"retries": -1}, "retries must be an int >= 0"),
        ({"workers": 0}, "workers must be an int >= 1"),
        ({"executor": 3}, "executor must be an executor"),
        ({"maximize": 1}, "maximize must be True or False"),
        ({"num_steps": 1.5}, "num_steps must be an int"),
        ({"estimator": optax.sgd(1.0)}, "estimator must be a zojax.Estimator"),
        ({"function": 3}, "function must be callable"),
    ],
)
def test_arguments(kwargs, message):
    kwargs = {"function": squares, **kwargs}
    with pytest.raises(ValueError, match=message):
        run(**kwargs)


def test_more_arguments():
    with pytest.raises(ValueError, match="optimizer must be"):
        optimize(squares, START, zoar(), 0.1, 1)
    with pytest.raises(ValueError, match="a list of words"):
        command("./simulate --fast")
    with pytest.raises(ValueError, match="query_id"):
        as_value_fn(fails)
