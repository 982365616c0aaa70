"""The SPSA benchmark: what is judged, by closed forms; tiny runs where rivals are."""

import importlib.util

import numpy as np
import pandas as pd
import pytest

NEEDED = ("cocoex", "evosax", "noisyopt")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f'{MISSING} not installed: pip install -e ".[rivals]"'
)


def test_gaps_are_those_without_noise():
    """Spheres of all noises: f - min f is the squared distance to where f is least."""
    from benchmarks.spsa import problems

    pairs = [(f, 3) for f in (101, 102, 103, 107, 108, 109)]
    spheres = problems.Problems(3, pairs)
    points = np.random.default_rng(0).uniform(-4, 4, (6, 3))
    lowest = problems._optimum(spheres.problems[0])
    expected = ((points - lowest) ** 2).sum(axis=1)
    found = spheres.gaps(np.arange(6), points)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(spheres.gaps([4], lowest[None]), 0, atol=1e-7)
    far = np.full((1, 3), np.nan)
    assert spheres.gaps([0], far) == np.inf
    assert spheres.num_calls == 0
    asked = np.stack([lowest, far[0]])
    values = spheres._call(np.array([2, 2]), asked)
    assert spheres.num_calls == 2
    assert np.isfinite(values[0])
    assert np.isnan(values[1])


def test_tables_and_findings_by_hand():
    from benchmarks.spsa import coco

    lefts = {"zojax SPSA": 1e-1, "zojax signs": 1e-2, "evosax SNES": 1e-3}
    rows = [
        {
            "d": 2,
            "method": method,
            "function": f,
            "instance": i,
            "noise": coco.noise_of(f),
            "calls": calls,
            "left": left * 10 ** (0.1 * (i - 1)) if calls == 10 else 1.0,
        }
        for method, left in lefts.items()
        for f in (101, 107, 108, 109)
        for i in (0, 1, 2)
        for calls in (5, 10)
    ]
    frame = pd.DataFrame(rows)
    found = coco.summary(coco.ends(frame))
    np.testing.assert_allclose(found["log"][list(lefts)], [-1, -2, -3])
    # Four functions of three instances, 0.1 apart: sqrt(8 * 0.01 / 8 / 12).
    np.testing.assert_allclose(found["error"], np.sqrt(0.01 / 12))
    np.testing.assert_allclose(found["mean rank"][list(lefts)], [3, 2, 1])
    assert set(found["got worse"]) == {"0%"}
    assert "zojax signs -1.00" in coco.findings(frame)[0]
    by_dimension, by_noise = coco.tables(frame).values()
    assert by_dimension[2].tolist() == ["-1.00(3)", "-2.00(3)", "-3.00(3)"]
    kinds = ["moderate", "severe gaussian", "severe uniform", "severe Cauchy"]
    assert list(by_noise)[:4] == kinds


def test_a_tiny_run(tmp_path, monkeypatch):
    """Each method makes no more calls than it may, and hardly fewer."""
    from benchmarks.__main__ import main
    from benchmarks.spsa import coco, methods, reference

    some = ("zojax SPSA, blocked", "zojax 2-SPSA", "zojax signs", "evosax SNES")
    chosen = {name: methods.METHODS[name] for name in some}
    monkeypatch.setattr(coco, "METHODS", chosen)
    monkeypatch.setattr(coco, "FUNCTIONS", (101, 113))
    monkeypatch.setattr(coco, "STEP_SIZES", (0.3, 1.0))
    monkeypatch.setattr(coco, "JUDGING", (1, 2))
    monkeypatch.setattr(coco, "DIMENSIONS", {False: (2,)})
    monkeypatch.setattr(reference, "QUICK", (40, 30))
    assert main(["spsa", f"--output={tmp_path}"]) == 0
    frame = pd.read_csv(tmp_path / "coco" / "coco.csv")
    assert len(frame) == 4 * 2 * 2 * coco.POINTS
    assert frame["left"].between(coco.BEST, coco.WORST).all()
    calls = frame.groupby("method")["calls_made"].first()
    assert (calls <= 200).all()
    assert (calls > 200 - methods.population_of(2)).all()
    ends = pd.read_csv(tmp_path / "reference" / "reference.csv")
    assert (reference.summary(ends)["errors_apart"].abs() < 4).all()
