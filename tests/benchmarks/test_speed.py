"""The speed benchmark: rivals by hand, studies at tiny sizes; no timing decides."""

import importlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import benchmarks.rivals
import zojax
from benchmarks.__main__ import main
from benchmarks.functions import quadratic, rosenbrock
from benchmarks.rivals import mezo_by_hand
from benchmarks.speed import (
    STUDIES,
    compiling,
    low_rank,
    noise,
    rivals,
    scaling,
    stack,
    timing,
)

# -- rivals ----------------------------------------------------------------------------


def test_mezo_by_hand_is_a_central_difference_along_its_noise():
    params = {"a": jnp.linspace(-1, 1, 6).reshape(2, 3), "b": jnp.array([2.0, -0.5])}
    f = lambda p: jnp.sum(p["a"] ** 2) + jnp.sum(p["b"] ** 3)
    key, mu, lr = jax.random.key(7), 0.1, 0.05
    found = mezo_by_hand.step(f, params, key, mu, lr)

    keys = jax.random.split(key, 2)
    x = {n: np.asarray(leaf, np.float64) for n, leaf in params.items()}
    z = {
        n: np.asarray(jax.random.normal(k, params[n].shape), np.float64)
        for n, k in zip("ab", keys, strict=True)
    }
    at = lambda t: (
        np.sum((x["a"] + t * z["a"]) ** 2) + np.sum((x["b"] + t * z["b"]) ** 3)
    )
    slope = (at(mu) - at(-mu)) / (2 * mu)
    for n in "ab":
        np.testing.assert_allclose(found[n], x[n] - lr * slope * z[n], rtol=1e-4)


def test_mezo_by_hand_draws_anew_at_each_step():
    x, key = jnp.ones(4), jax.random.key(3)
    found = jax.jit(mezo_by_hand.training(quadratic, 3, 1e-2, 1e-2, seed=3))(x)
    for step_key in jax.random.split(key, 3):
        x = mezo_by_hand.step(quadratic, x, step_key, 1e-2, 1e-2)
    np.testing.assert_allclose(found, x, rtol=1e-4)


def test_open_es_lowers_a_quadratic():
    pytest.importorskip("evosax")
    from benchmarks.rivals import open_es

    run = open_es.training(quadratic, 200, 10, 0.05, zojax.radazo(1e-2))
    x = jnp.ones(50)
    assert quadratic(jax.jit(run)(x)) < 0.1 * quadratic(x)


def test_the_floor_evaluates_f_and_uses_every_sign_once():
    x = jnp.linspace(-1, 1, 70)  # not whole words
    offsets = rivals.SMOOTHING * np.arange(rivals.NUM_DIRECTIONS)
    values = [float(rosenbrock(x + offset)) for offset in offsets]
    np.testing.assert_allclose(rivals.evaluations(rosenbrock, x), values, rtol=1e-5)
    signs = np.asarray(rivals.packed_signs(jax.random.key(0), 70))
    assert signs.shape == (rivals.NUM_DIRECTIONS, 70)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4 / np.sqrt(signs.size)
    assert abs(np.corrcoef(signs[0], signs[1])[0, 1]) < 4 / np.sqrt(70)


def test_every_program_takes_its_steps():
    """All stay finite on Rosenbrock, and all but the floor's move."""
    x = jax.random.normal(jax.random.key(1), (40,))
    for name, run in rivals.in_jax(rosenbrock, 3).items():
        after = jax.jit(run)(x)
        assert jnp.isfinite(after).all(), name
        if name.startswith(("ZoAR", "mean")):
            assert (after != x).mean() > 0.5, name


@pytest.mark.parametrize("package", rivals.NEEDS)
def test_rivals_that_are_there_are_timed(package):
    pytest.importorskip(package)
    if package == "torch":
        found = rivals.in_torch("rosenbrock", 20, 2)
        for program, _ in found.values():
            program()
    else:
        found = rivals.in_evosax(rosenbrock, 2)
        for program in found.values():
            program(jnp.zeros(20))
    assert set(found) == set(rivals.NEEDS[package])


def test_an_error_inside_a_rival_is_not_hidden():
    def broken():
        raise ModuleNotFoundError("No module named 'zojax.gone'", name="zojax.gone")

    with pytest.raises(ModuleNotFoundError, match=re.escape("zojax.gone")):
        rivals.unless_missing(broken)


# -- timing ----------------------------------------------------------------------------


def test_turns_and_ratios(monkeypatch):
    clock = iter([0, 1, 0, 6, 0, 3, 0, 9, 0, 2, 0, 8])  # a 1, 3, 2; b 6, 9, 8 seconds
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    calls, shares = [], []
    timed = {
        "a": (lambda: calls.append("a"), 1),
        "b": (lambda: calls.append("b"), 2),  # steps
    }
    a, b = timing.compare(timed, {"over_a": "a"}, 3, shares.append)
    assert calls == list("abababab")  # the first of each warms up
    assert shares == sorted(shares)
    assert shares[-1] < 1
    assert (a["ms"], a["over_a"]) == (2000, 1)
    assert (b["ms"], b["over_a"]) == (4000, 2)  # of 3, 1.5, 2


def test_exponent_of_a_power():
    sizes = [10, 100, 1000]
    times = [3e-5 * s**1.25 for s in sizes]
    np.testing.assert_allclose(timing.exponent(sizes, times), 1.25)


def test_ratios_are_told_by_cell():
    frame = pd.DataFrame(
        {"cell": ["small", "large", "large"], "program": list("bba"), "x": [2, 0.5, 1]}
    )
    assert timing.ratios(frame, "x", "cb", "a") == ["b over a: 2 (small), 0.5 (large)."]


def test_low_rank_programs_compute_what_they_say():
    """Evaluations by hand; steps that go down along what their directions see."""
    weights = jax.random.normal(jax.random.key(0), (2, 8, 8)) / 8**0.5
    inputs = jnp.linspace(-1, 1, 24).reshape(3, 8)

    def by_hand(scale):
        x = scale * np.asarray(inputs, np.float64)
        for w in np.asarray(weights, np.float64):
            x = np.tanh(x @ w)
        return np.mean(x**2)

    expected = sum(map(by_hand, np.linspace(0.9, 1.1, 8)))
    np.testing.assert_allclose(
        low_rank.evaluations(weights, inputs), expected, rtol=1e-5
    )
    slope = jax.grad(low_rank.model)(weights, inputs)
    for name, of in low_rank.STEPS.items():
        moved = jax.jit(low_rank.step(*of, 0))(weights, inputs) - weights
        assert jnp.vdot(moved, slope) < 0, name


# -- the command -----------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Every study at a size of seconds."""
    some = (rivals.FLOOR, rivals.OURS, rivals.GAUSSIAN, rivals.BY_HAND, rivals.MEZO)
    programs = rivals.in_jax
    few = lambda f, steps: {name: programs(f, 2)[name] for name in some}
    monkeypatch.setattr(rivals, "in_jax", few)
    monkeypatch.setattr(rivals, "QUICK", (50,))
    monkeypatch.setattr(scaling, "QUICK", (50, 100))
    monkeypatch.setattr(scaling, "DIMENSION_AGAINST_K", 50)
    monkeypatch.setattr(scaling, "DIRECTIONS", (1, 2))
    monkeypatch.setattr(scaling, "ENTRIES", 100)
    monkeypatch.setattr(noise, "QUICK", (100,))
    monkeypatch.setattr(noise, "ENTRIES", 200)
    monkeypatch.setattr(low_rank, "QUICK", ((2, 8, 2),))
    steps = (stack.SCAN, stack.APART, stack.CACHED, stack.UPDATE)
    compiled = {name: stack.PROGRAMS[name] for name in steps}
    monkeypatch.setattr(stack, "PROGRAMS", compiled)
    monkeypatch.setattr(compiling, "QUICK", (1,))
    for module in (rivals, scaling, noise, low_rank, compiling):
        monkeypatch.setattr(module, "REPEATS", 1)


@pytest.fixture
def no_rivals(monkeypatch):
    for package in rivals.NEEDS:
        for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, name)  # an earlier test's
        monkeypatch.setitem(sys.modules, package, None)
    for name in ("zoar_torch", "open_es"):
        monkeypatch.delitem(sys.modules, f"benchmarks.rivals.{name}", raising=False)
        monkeypatch.delattr(benchmarks.rivals, name, raising=False)


@pytest.mark.parametrize("name", STUDIES)
def test_study(name, small, no_rivals, tmp_path, capsys):
    assert main(["speed", f"--studies={name}", f"--output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    module = importlib.import_module(f"benchmarks.speed.{name.replace('-', '_')}")
    assert module.STUDY.timed
    frame = pd.read_csv(tmp_path / name / f"{name}.csv")
    assert list(frame["cell"].unique()) == list(module.STUDY.cells(False, 0))
    assert (frame["ms"] > 0).all()
    assert (tmp_path / name / f"{name}.png").stat().st_size > 5_000
    assert "\n- " in printed
    if name == "rivals":
        for package in rivals.NEEDS:
            assert f"{package} is missing" in printed
