"""The memory benchmark: planned bytes, and the study at a tiny size."""

import functools

import jax
import numpy as np
import pandas as pd
import pytest

import zojax
from benchmarks.__main__ import main
from benchmarks.memory import programs, steps
from benchmarks.memory.programs import compile_step, layers, planned, vector

temporary = lambda *case: planned(case[0], compile_step(*case)[1])["temporary"]


CASES = [(name, vector(50_000)) for name in programs.ESTIMATORS]
CASES += [(name, layers(64)) for name in ("two_point", programs.LAZY)]


@pytest.mark.parametrize(
    ("estimator", "problem"), CASES, ids=lambda c: getattr(c, "name", c)
)
def test_one_direction_at_a_time_needs_no_more_for_more_directions(estimator, problem):
    few, many = (temporary(problem, estimator, k, 1) for k in (4, 16))
    assert many < few + 0.1


def test_all_at_once_needs_a_copy_a_direction():
    assert temporary(vector(50_000), "two_point", 16, None) >= 16


def test_planned_memory_by_hand():
    problem = vector(10_000)
    _, compiled = compile_step(problem, "two_point", 4, 1)
    found = planned(problem, compiled)
    np.testing.assert_allclose(found["arguments"], 1, atol=0.01)
    # The step overwrites its arguments.
    total = programs.total_bytes(compiled) / programs.num_bytes(problem.like)
    np.testing.assert_allclose(total, 1 + found["temporary"], atol=0.01)
    _, compiled = compile_step(problem, "zoar, sums", 4, 1)
    # The params, and two sums for this step and each of the last five.
    np.testing.assert_allclose(planned(problem, compiled)["arguments"], 13, atol=0.01)


def test_the_history_is_written_in_place():
    """A history of 12 vectors costs a step no copy of any, in a loop neither."""
    problem = vector(10_000)
    assert temporary(problem, "zoar, sums", 4, 1) < 5
    build = programs.ESTIMATORS["zoar, sums"](problem)
    opt = build(programs.SMOOTHING, 4, key=0, chunk_size=1)

    def run(x, state):
        def step(carry, _):
            x, state = carry
            g, state = opt.update(None, state, x, value_fn=problem.f)
            return (x - 1e-9 * g, state), None

        return jax.lax.scan(step, (x, state), length=3)[0]

    state = jax.eval_shape(opt.init, problem.like)
    compiled = jax.jit(run, donate_argnums=(0, 1)).lower(problem.like, state).compile()
    assert planned(problem, compiled)["temporary"] < 5


def test_lazy_at_one_direction_is_mezo():
    problem = layers(16)
    build = programs.ESTIMATORS[programs.LAZY](problem)
    opt = build(programs.SMOOTHING, 1, key=0, chunk_size=1)
    sampler = zojax.perturbations.lazy(zojax.perturbations.rademacher(), True)
    mezo = zojax.mezo(1.0, programs.SMOOTHING, key=0, sampler=sampler)
    x = jax.random.normal(jax.random.key(0), problem.like.shape)
    found, expected = (
        jax.jit(lambda x, o=o: o.update(None, o.init(x), x, value_fn=problem.f)[0])(x)
        for o in (opt, mezo)
    )
    np.testing.assert_allclose(found, -expected, rtol=1e-6)


def test_findings_and_tables_by_hand():
    """One at a time 2 copies and a 64th a direction, all at once 3 K of them."""
    row = {"problem": "p", "estimator": "e", "arguments": 1.0}
    row |= {"device": "cpu", "jax": "0"}
    kinds = {"all at once": lambda k: 3.0 * k, "1 at a time": lambda k: 2.0 + k / 64}
    frame = pd.DataFrame(
        row | {"num_directions": k, "chunk": chunk, "temporary": copies(k)}
        for k in (1, 8, 32)
        for chunk, copies in kinds.items()
    )
    assert "adds 0.38 copies" in steps.findings(frame)[0]
    (table,) = steps.tables(frame).values()
    assert table.loc[("e", "all at once")].tolist() == [3, 24, 96, 1]


def test_the_study(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(steps, "QUICK", (1000,))
    monkeypatch.setattr(steps, "DIRECTIONS", (1, 2))
    monkeypatch.setattr(steps, "layers", functools.partial(layers, 8))
    some = {name: programs.ESTIMATORS[name] for name in ("two_point", "dap")}
    monkeypatch.setattr(steps, "ESTIMATORS", some)
    assert main(["memory", f"--output={tmp_path}"]) == 0
    assert "K from 2 on adds" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "steps/steps.csv")
    assert list(dict.fromkeys(frame["cell"])) == list(steps.cells(False, 0))
    assert (tmp_path / "steps/steps.png").stat().st_size > 5_000
