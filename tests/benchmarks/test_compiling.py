"""The study of what compiles: its model by hand, its programs, what the cache keeps."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from benchmarks.speed import compiling, stack


def by_hand(layers, x):
    """Layer by layer in float64."""
    standardize = lambda x: (
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    )
    gelu = lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    for p in layers:
        h = standardize(x)
        scores = (h @ p["q"]) @ np.swapaxes(h @ p["k"], -1, -2)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + weights @ (h @ p["v"]) @ p["out"]
        x = x + gelu(standardize(x) * p["scale"] @ p["up"]) @ p["down"]
    return np.mean(x**2)


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (*stack.BATCH, stack.WIDTH))


@pytest.mark.parametrize("form", [stack.SCAN, stack.LOOP, stack.APART])
def test_each_form_is_the_same_model(form, x):
    layers = jax.tree.map(np.float64, stack.weights(stack.APART, 3, 0))
    expected = by_hand(layers, np.float64(x))
    found = stack.model(stack.weights(form, 3, 0), x, form)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", [stack.LOOP, stack.UPDATE, "donated"])
def test_steps_that_differ_in_how_they_compile_are_the_same(name):
    step, args, _ = stack.program(stack.SCAN, 2, 0)
    expected = jax.jit(step)(*args)[0]
    step, args, options = stack.program(name, 2, 0)
    step = step if options is None else jax.jit(step, **options)
    found = step(*args)[0]
    before = stack.weights(stack.SCAN, 2, 0)  # donated ones are gone
    for leaf in before:
        np.testing.assert_allclose(found[leaf], expected[leaf], rtol=1e-4, atol=1e-6)
        assert (found[leaf] != before[leaf]).mean() > 0.9


def given(form, depth):
    step, args, options = stack.program(form, depth, 0)
    return jax.jit(step, **options).lower(*args).as_text().count(" = ")


def test_a_scan_is_one_layer_and_leaves_are_counted():
    """What the page says: XLA is given one layer, a program for each, or more."""
    scan, loop, apart = (
        [given(form, depth) for depth in (2, 4, 6)]
        for form in (stack.SCAN, stack.LOOP, stack.APART)
    )
    assert scan[0] == scan[1] == scan[2]
    assert loop[2] - loop[1] == loop[1] - loop[0] > 0
    assert apart[2] - apart[1] > 3 * (loop[2] - loop[1])


def test_a_seed_is_no_part_of_a_program():
    """So that the persistent cache has it, whatever the seed."""
    steps = [stack.program(stack.SCAN, 1, seed) for seed in (0, 1)]
    one, other = (jax.jit(p.step).lower(*p.args).as_text() for p in steps)
    assert one == other


def test_the_cache_is_used_there_alone(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    step = lambda x: jnp.sin(x) * 3.0 + jnp.cos(x)
    program = stack.Program(step, (jnp.ones(7),), {})
    with compiling.cache(str(tmp_path)):
        row = compiling.compiled(program)
        kept = sorted(os.listdir(tmp_path))
        again = compiling.compiled(program)
    assert jax.config.jax_compilation_cache_dir == before
    assert kept == sorted(os.listdir(tmp_path))
    assert any(name.startswith("jit__lambda") for name in kept)
    for name in ("given", "made"):
        assert row[name] == again[name] > 0
    phases = sum(row[name] for name in compiling.PHASES)
    assert row["ms"] == pytest.approx(phases)


def test_patience_ends_repeats(monkeypatch):
    took, calls = {}, []
    monkeypatch.setattr(compiling, "compiled", lambda program: calls.append(1) or took)
    monkeypatch.setattr(stack, "program", lambda *of: None)
    for share, number in ((0.1, 3), (0.6, 2), (1.1, 1)):
        took["ms"], calls[:] = share * 1e3 * compiling.PATIENCE, []
        row = compiling.repeated(stack.SCAN, 1, 0)
        assert len(calls) == number
        assert row["spread"] == (1 if number > 1 else None)


def test_ratios_are_those_of_the_scan(monkeypatch):
    order = list(stack.PROGRAMS)
    times = lambda name, depth, seed: {
        "ms": 1e3 * (1 + order.index(name)),
        "program": name,
        "spread": 1.25,
        **dict.fromkeys((*compiling.PHASES, "given", "made"), 4.0),
    }
    monkeypatch.setattr(compiling, "repeated", times)
    cells, seen = compiling.cells(False, 0), []
    rows = [row | {"cell": n} for n, cell in cells.items() for row in cell(seen.append)]
    frame = pd.DataFrame(rows)
    assert seen == sorted(seen)
    spread, said = compiling.findings(frame)
    assert "up to 1.25 times" in spread
    assert said.startswith("12 layers: 1 s before a scanned step; times that: 2 (loop")
    (table,) = compiling.STUDY.tables(frame).values()
    assert list(table.index) == order
    assert list(table["ratio"])[:3] == [1, 2, 3]
