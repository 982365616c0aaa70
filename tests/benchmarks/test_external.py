"""The external benchmark, at tiny sizes: nothing is decided by a time."""

import logging
import math

import numpy as np
import pandas as pd
import pytest

from benchmarks.__main__ import main
from benchmarks.external import faults, kills, simulator, workers


def test_faults_have_their_shares():
    """Of 10,000 points, within four standard errors."""
    found = [faults.fault_of(i) for i in range(10_000)]
    for fault, share in (("fails", faults.FAILED), ("hangs", faults.HANGING)):
        error = math.sqrt(share * (1 - share) / len(found))
        assert abs(found.count(fault) / len(found) - share) < 4 * error


def test_ideal_time_by_hand(monkeypatch):
    """Three steps, of which two count, four points each; the sixth point hangs."""
    monkeypatch.setattr(faults, "fault_of", lambda i: "hangs" if i == 5 else None)
    assert workers.ideal(4, 1, 3, faulty=False) == 8 * workers.SECONDS
    assert workers.ideal(4, 4, 3, faulty=False) == 2 * workers.SECONDS
    # Points 4 and 5 start, then 6 and 7 beside the one that hangs.
    assert workers.ideal(4, 2, 3, faulty=True) == workers.LIMIT + 2 * workers.SECONDS


@pytest.mark.parametrize("kind", workers.KINDS[:2])
def test_workers(kind, monkeypatch):
    monkeypatch.setattr(workers, "SECONDS", 0.01)
    monkeypatch.setattr(workers, "LIMIT", 60.0)  # an interpreter may take its time
    monkeypatch.setattr(workers, "NUM_DIRECTIONS", 4)
    monkeypatch.setattr(faults, "fault_of", lambda i: "fails" if i == 5 else None)
    (row,) = workers.measure(kind, 4, 2, lambda share: None)
    assert row["evaluations"] == 8
    assert row["failed"] == kind.endswith("faulty")
    frame = pd.DataFrame([row])
    assert f"({kind})" in workers.findings(frame)[0]
    share, longest = workers.tables(frame).values()
    assert share.loc[4, kind] == row["evaluations alone"] / row["seconds"]
    assert longest.loc[4, kind] == row["seconds"]  # of two steps one counts
    workers.figure(frame)


def test_a_simulator(tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level(logging.ERROR, "zojax.external")  # the command's own: it is reset
    monkeypatch.setattr(simulator, "QUICK", (3, 6, 4, 2))
    monkeypatch.setattr(simulator, "LIMIT", 60.0)
    command = ["external", "--studies=simulator", f"--output={tmp_path}"]
    assert main(command) == 0
    frame = pd.read_csv(tmp_path / "simulator" / "simulator.csv")
    runs = frame.groupby("case")
    assert (runs["points"].last() == 8).all()
    # Of the first eight points the sixth fails, and none hangs.
    lost = {"no faults": 0, "faults": 1, "one worker": 0}
    assert runs["lost"].last().to_dict() == lost
    # How many work at a time does not change what is found.
    alone, both = (runs["best"].get_group(case) for case in ("one worker", "no faults"))
    np.testing.assert_array_equal(alone, both)
    assert "descent gains" in capsys.readouterr().out


def test_what_is_said_of_kills():
    rows = [
        {"kill": i, "written": i / 4, "same_end": True, "points": 9} for i in (1, 2)
    ]
    frame = pd.DataFrame(rows).assign(each_once=[True, True])
    assert "bit-equal" in kills.findings(frame)[0]
    assert "exactly once" in kills.findings(frame)[0]
    assert "NOT once" in kills.findings(frame.assign(each_once=False))[0]
    assert "NOT equal" in kills.findings(frame.assign(same_end=False))[0]
    (table,) = kills.tables(frame).values()
    assert table["written"].tolist() == [0.25, 0.5]
    kills.figure(frame)
