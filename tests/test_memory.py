"""The memory benchmark: planned bytes, a child process, studies at tiny sizes."""

import functools
import importlib

import jax
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import zojax
from benchmarks import UsageError
from benchmarks.__main__ import main
from benchmarks.memory import STUDIES, peak, programs, steps
from benchmarks.memory.programs import compile_step, layers, planned, vector

WHERE = {"device": "cpu", "jax": "0"}
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
    problem = vector(50_000)
    assert temporary(problem, "two_point", 16, None) >= 16


def test_planned_memory_by_hand():
    """Arguments and outputs are params and state, and alias one another."""
    problem = vector(10_000)
    _, compiled = compile_step(problem, "two_point", 4, 1)
    found = planned(problem, compiled)
    for name in ("arguments", "outputs", "aliased"):
        np.testing.assert_allclose(found[name], 1, atol=0.01)
    np.testing.assert_allclose(found["total"], 1 + found["temporary"], atol=0.01)
    _, compiled = compile_step(problem, "zoar, sums", 4, 1)
    # The params, and two sums for this step and each of the last five.
    np.testing.assert_allclose(planned(problem, compiled)["arguments"], 13, atol=0.01)


def test_the_history_is_written_in_place():
    """A history of 12 vectors costs a step no copy of any, in a loop neither."""
    problem = vector(10_000)
    assert temporary(problem, "zoar, sums", 4, 1) < 5
    opt = programs.ESTIMATORS["zoar, sums"](
        problem, 4, key=0, sampler=zojax.perturbations.rademacher(), chunk_size=1
    )

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
    opt = programs.ESTIMATORS[programs.LAZY](
        problem, 1, key=0, sampler=None, chunk_size=1
    )
    sampler = zojax.perturbations.lazy(zojax.perturbations.rademacher(), True)
    mezo = zojax.mezo(1.0, programs.SMOOTHING, key=0, sampler=sampler)
    x = jax.random.normal(jax.random.key(0), problem.like.shape)
    found, expected = (
        jax.jit(lambda x, o=o: o.update(None, o.init(x), x, value_fn=problem.f)[0])(x)
        for o in (opt, mezo)
    )
    np.testing.assert_allclose(found, -expected, rtol=1e-6)


def test_chunks_that_differ():
    assert programs.chunks(1) == [None, 1]
    assert programs.chunks(4) == [None, 1]
    assert programs.chunks(8) == [None, 4, 1]


def made_up_steps():
    """One at a time 2 copies, all at once 3 K of them."""
    row = {"problem": "p", "estimator": "e", "arguments": 1.0, "outputs": 1.0}
    row |= {"aliased": 1.0, "total": 0.0} | WHERE
    return pd.DataFrame(
        row | {"num_directions": k, "chunk": chunk, "temporary": copies}
        for k in (1, 8, 32)
        for chunk, copies in ((steps.WHOLE, 3.0 * k), (steps.SINGLE, 2.0 + k / 64))
    )


def test_findings_on_planned_memory():
    frame = made_up_steps()
    np.testing.assert_allclose(steps.growth(frame), 24 / 64)
    (said,) = steps.findings(frame)
    assert "adds 0.38" in said
    assert "96.00 with K = 32 at once" in said


def made_up_peak():
    row = {"read": "VmHWM", "params_bytes": 2**20, "before_bytes": 0} | WHERE
    return pd.DataFrame(
        row
        | {
            "problem": problem,
            "estimator": name,
            "num_directions": 8,
            "chunk": steps.SINGLE,
            "peak_bytes": copies * 2**20,
            "copies": copies,
            "planned": copies - gap,
        }
        for problem in ("p", "q")
        for name, copies, gap in (("a", 2.0, 0.25), ("b", 7.0, -0.5))
    )


def test_findings_on_peaks():
    gap, first, _ = peak.findings(made_up_peak())
    assert "at most 0.50 copies" in gap
    assert "2.00 copies" in first
    assert "7.00 (b, K = 8, 1 at a time)" in first


@pytest.mark.parametrize(
    ("module", "frame"), [(steps, made_up_steps()), (peak, made_up_peak())]
)
def test_tables_and_figure(module, frame):
    assert all(table.row_count for table in module.tables(frame))
    assert isinstance(module.figure(frame), Figure)


@pytest.fixture
def small(monkeypatch):
    """Every study at a size of seconds."""
    monkeypatch.setattr(steps, "QUICK", (1000,))
    monkeypatch.setattr(steps, "DIRECTIONS", (1, 2))
    monkeypatch.setattr(steps, "layers", functools.partial(layers, 8))
    some = ("two_point", "dap")
    monkeypatch.setattr(
        steps, "ESTIMATORS", {name: programs.ESTIMATORS[name] for name in some}
    )
    monkeypatch.setattr(peak, "SIZES", {"vector": (2_000_000,)})
    monkeypatch.setattr(peak, "CASES", (("two_point", 8, None), ("two_point", 8, 1)))


@pytest.mark.parametrize("name", STUDIES)
def test_study(name, small, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    assert main(["memory", f"--studies={name}", f"--output={tmp_path}"]) == 0
    assert "\n- " in capsys.readouterr().out
    study = importlib.import_module(STUDIES[name]).STUDY
    frame = pd.read_csv(tmp_path / name / f"{name}.csv")
    assert list(dict.fromkeys(frame["cell"])) == list(study.cells(False, 0))
    assert (tmp_path / name / f"{name}.png").stat().st_size > 5_000
    if name == "peak" and frame["read"].iloc[0] != "ru_maxrss":
        # Eight directions and points of 8 MB, against one of each.
        whole, single = frame["copies"]
        assert whole > single + 4


def test_a_child_that_fails_says_why():
    with pytest.raises(UsageError, match="KeyError: 'nothing'"):
        peak.run_child(
            {"problem": "nothing", "size": 1, "estimator": "two_point"}
            | {"num_directions": 1, "chunk_size": 1}
        )
