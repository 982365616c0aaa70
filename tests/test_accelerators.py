"""The accelerators benchmark: what the TPU compiler plans, where it is installed."""

import importlib.util
import types

import pandas as pd
import pytest
from matplotlib.figure import Figure

from benchmarks.__main__ import main
from benchmarks.accelerators import compiled, vectors
from benchmarks.memory import programs


@pytest.fixture
def libtpu(monkeypatch):
    """Skips without it; it ends a process that has XLA flags it does not know."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip('libtpu is not installed: pip install -e ".[accelerators]"')
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")


def test_without_libtpu_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["accelerators", f"--output={tmp_path / 'new'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "libtpu is missing" in line
    assert not (tmp_path / "new").exists()


def test_unknown_topologies_are_one_line(capsys):
    assert main(["accelerators", "--topology=v5e:1x1,abacus"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "abacus" in line
    assert "v6e:2x2" in line


def test_loops_and_collectives_are_counted_by_hand():
    text = """
      %w = (f32[2]) while(%t), condition=%c, body=%b
      %s = f32[2] all-reduce-start(%x), to_apply=%add
      %d = f32[2] all-reduce-done(%s)
      %g = f32[4] all-gather(%x), dimensions={0}
      %f = f32[2] fusion(%x), calls=%while_body
    """
    program = types.SimpleNamespace(as_text=lambda: text)
    assert compiled.operations(program) == {"loops": 1, "collectives": 2}


def made_up():
    """The gaussian one needs a copy at least."""
    row = {"topology": "v5e:1x1", "problem": "p", "loops": 2, "collectives": 0}
    return pd.DataFrame(
        row
        | {"estimator": name, "chunk": chunk, "temporary": copies, "jax": "0"}
        | {"over_forward": copies + 1}
        for name, copies in (("a", 0.0), ("b, gaussian", 2.5))
        for chunk in ("all at once", "1 at a time")
    )


def test_tables_findings_and_figure():
    frame = made_up()
    (table,) = vectors.tables(frame)
    assert table.row_count == 4
    whole, single = vectors.findings(frame)
    for said in (whole, single):
        assert "from 0.00 temporary copies of params (a, p) to 2.50" in said
    assert isinstance(vectors.figure(frame), Figure)


def test_plans_of_a_tpu(libtpu, tmp_path, monkeypatch, capsys):
    """Gaussian directions one at a time need no vector; nothing travels on one chip."""
    some = ("two_point, gaussian", "zoar, sums")
    chosen = {name: programs.ESTIMATORS[name] for name in some}
    monkeypatch.setattr(vectors, "ESTIMATORS", chosen)
    monkeypatch.setattr(vectors, "QUICK", (1_000_000,))
    monkeypatch.setattr(vectors, "WIDTH", 256)
    command = ["accelerators", "--topology=v5e:2x4", f"--output={tmp_path}"]
    assert main(command) == 0
    assert "\n- v5e:2x4, all at once" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "vectors" / "vectors.csv")
    assert len(frame) == 8
    assert (frame["collectives"] == 0).all()
    single = frame[frame["chunk"] == "1 at a time"]
    of_vector = single[single["problem"].str.startswith("vector")]
    by_name = of_vector.set_index("estimator")["temporary"]
    assert by_name["two_point, gaussian"] < 0.1
    assert (frame["over_forward"] > 1).all()


def test_a_chip_that_libtpu_does_not_know(libtpu):
    with pytest.raises(compiled.UsageError, match="cannot compile for v5e:3x5x7"):
        compiled.devices("v5e:3x5x7")
