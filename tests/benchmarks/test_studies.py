"""The benchmarks' command: studies, what a resumed run keeps, bad arguments."""

import io
import json
import subprocess
import sys
import time
import types

import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks import __main__, folder, studies, threads
from benchmarks.study import Study, mean_error, plain, printed, with_error


class Toy:
    """A study of five cells that notes which it has worked on."""

    def __init__(self):
        self.worked = []
        self.study = Study(
            "Toy",
            lambda full, seed: {f"{i}": self.cell(i) for i in range(5)},
            lambda frame: {"Sums": frame.groupby("row")[["value"]].sum()},
            lambda frame: [f"sum {frame['value'].sum():g}"],
            lambda frame: Figure(),
        )

    def cell(self, i):
        def run(tick):
            self.worked.append(i)
            tick(0.5)
            return [{"row": j, "value": i + j / 3} for j in range(3)]

        return run


@pytest.fixture
def toy(monkeypatch):
    """A task with one study, and one more that holds the same."""
    found = Toy()
    task = types.ModuleType("benchmarks.toys", "Toys.")
    module = types.SimpleNamespace(STUDY=found.study)
    monkeypatch.setitem(__main__.TASKS, "toys", "Toys.")
    monkeypatch.setitem(sys.modules, "benchmarks.toys", task)
    monkeypatch.setitem(sys.modules, "benchmarks.toys.toy", module)
    monkeypatch.setitem(sys.modules, "benchmarks.toys.another_one", module)
    on_demand = {"another-one": "shows the same"}
    task.command = studies.command("benchmarks.toys", ("toy",), on_demand)
    return found


def run(*argv):
    return __main__.main(["toys", *argv])


def test_a_study_is_measured_shown_and_written(toy, tmp_path, capsys):
    assert run(f"--output={tmp_path}") == 0
    out = capsys.readouterr().out
    assert "sum 35" in out
    assert "Sums" in out
    assert "another" not in out
    frame = pd.read_csv(tmp_path / "toy/toy.csv")
    assert list(frame["cell"]) == [i for i in range(5) for _ in range(3)]
    assert (tmp_path / "toy/toy.png").exists()


def test_interrupted_and_resumed_is_as_unbroken(toy, tmp_path, monkeypatch, capsys):
    flags = ["--jobs=1", f"--output={tmp_path}"]
    assert run(*flags) == 0
    whole = (tmp_path / "toy/toy.csv").read_text()
    kept, save = [], folder.save

    def interrupting_save(path, data):
        save(path, data)
        kept.append(path)
        if len(kept) == 3:  # settings and two cells
            raise KeyboardInterrupt

    monkeypatch.setattr(folder, "save", interrupting_save)
    capsys.readouterr()
    assert run(*flags) == 130
    error = capsys.readouterr().err
    assert "toy 2/5" in error
    assert "--resume" in error
    assert len(error.splitlines()) == 1
    monkeypatch.setattr(folder, "save", save)
    toy.worked.clear()
    assert run(*flags, "--resume") == 0
    assert len(toy.worked) == 3  # whichever two were kept
    assert (tmp_path / "toy/toy.csv").read_text() == whole


def test_an_interrupted_cell_stops_early(toy, tmp_path, monkeypatch):
    """The running cell is told to stop at its next tick."""
    ended = []

    def endless(tick):
        try:
            while True:
                tick(0.0)
                time.sleep(0.01)
        finally:
            ended.append(True)

    def interrupt(running, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(toy, "cell", lambda i: endless)
    monkeypatch.setattr(threads, "wait", interrupt)
    assert run(f"--output={tmp_path}") == 130
    assert ended


def test_a_damaged_cell_is_measured_again(toy, tmp_path):
    assert run(f"--output={tmp_path}") == 0
    whole = (tmp_path / "toy/toy.csv").read_text()
    cell = sorted((tmp_path / "toy/cells").iterdir())[2]
    text = cell.read_text()
    for damaged in ("", "cell\n", "a,b\n1,2\n", text[:-1], text[: len(text) // 2]):
        cell.write_text(damaged)
        toy.worked.clear()
        assert run(f"--output={tmp_path}", "--resume") == 0
        assert toy.worked == [2]
        assert (tmp_path / "toy/toy.csv").read_text() == whole


def test_without_resume_a_folder_is_overwritten(toy, tmp_path):
    for _ in range(2):
        toy.worked.clear()
        assert run("--jobs=1", f"--output={tmp_path}") == 0
        assert toy.worked == [0, 1, 2, 3, 4]


def test_other_studies_of_a_folder_are_left_alone(toy, tmp_path):
    assert run(f"--output={tmp_path}") == 0
    whole = (tmp_path / "toy/toy.csv").read_text()
    assert run("--studies=another-one", "--seed=3", f"--output={tmp_path}") == 0
    assert (tmp_path / "another-one/another-one.csv").exists()
    assert (tmp_path / "toy/toy.csv").read_text() == whole


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--studies=toys"], "unknown 'toys', choose from toy,another-one"),
        (["--seed=-1"], "--seed"),
        (["--jobs=0"], "--jobs"),
        (["--seed=2147483647"], "--seed"),
        (["--seed=x"], "--seed"),
        (["--colour=red"], "--colour"),
        (["toy"], "toy"),
    ],
)
def test_bad_arguments_are_one_line(flags, words, toy, tmp_path, capsys):
    assert run(*flags, f"--output={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_resume_with_other_settings_is_refused(toy, tmp_path, capsys):
    tmp_path.joinpath("toy").mkdir()
    settings = tmp_path / "toy/settings.json"
    settings.write_text(json.dumps({"full": True, "seed": 0}))
    assert run(f"--output={tmp_path}", "--resume") == 2
    assert "full=True (now False)" in capsys.readouterr().err
    settings.write_text("{")
    assert run(f"--output={tmp_path}", "--resume") == 2
    assert "not readable" in capsys.readouterr().err


def test_an_unwritable_folder_is_one_line(toy, tmp_path, capsys):
    tmp_path.joinpath("file").write_text("")
    assert run(f"--output={tmp_path / 'file'}") == 2
    error = capsys.readouterr().err
    assert "cannot write" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["--help"], 0, "synthetic"),
        (["toys", "--help"], 0, "shows the same"),
        (["nothing"], 2, "No such command 'nothing'"),
        ([], 2, "--help"),
    ],
)
def test_help(argv, status, words, toy, capsys):
    assert __main__.main(argv) == status
    captured = capsys.readouterr()
    assert words in captured.err + captured.out


def test_tasks_are_imported_only_when_asked_for():
    code = (
        "import sys; from benchmarks.__main__ import main\n"
        "assert main(['--help']) == 0\n"
        "assert not {'jax', 'pandas', 'benchmarks.mesh'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_numbers_as_shown():
    assert with_error(0.53493, 0.0071) == "0.535(7)"
    assert with_error(12.3, 2.2) == "12(2)"
    assert with_error(3e-33, 1e-34) == "0"
    assert mean_error(pd.Series([1.0, 2.0, 3.0])) == "2.0(6)"  # 1 / sqrt(3)
    assert plain(float("nan")) == "-"
    assert plain(608_137.2) == "608,137"
    assert plain(0.0312345) == "0.0312"
    assert plain(4.2e-5) == "4.20e-05"


def test_a_table_as_printed():
    frame = pd.DataFrame(
        {"calls": [1200, 3], "share": ["12%", "3%"], "error": [0.012345, float("nan")]},
        index=pd.Index(["ours", "theirs"], name="method"),
    )
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(*printed({"Title": frame}))
    text = [line.split() for line in console.export_text().splitlines()]
    assert ["method", "calls", "share", "error"] in text
    assert ["ours", "1,200", "12%", "0.0123"] in text
    assert ["theirs", "3", "3%", "-"] in text
