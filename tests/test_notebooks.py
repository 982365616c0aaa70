"""The notebooks run from top to bottom, and are stored with their outputs."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from conftest import QUICK_COMPILES
from nbclient import NotebookClient

FILES = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
LIMIT = 600_000  # bytes of a file, figures included


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def test_there_are_nine():
    assert [path.name[:2] for path in FILES] == [f"0{n}" for n in range(1, 10)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_stored_outputs_are_those_of_one_run(path):
    notebook = read(path)
    cells = code_cells(notebook)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type for output in outputs(notebook)]
    assert "error" not in kinds
    names = [getattr(output, "name", "") for output in outputs(notebook)]
    assert "stderr" not in names
    figures = [o for o in outputs(notebook) if "image/png" in o.get("data", {})]
    assert figures or path.stem == "07_recipes"  # which asserts what it promises
    assert path.stat().st_size < LIMIT
    assert notebook.metadata.kernelspec.name == "python3"


# What editors, linters, converters and merges leave behind, and readers should not see.
STRAY = re.compile(
    r"^\s*# ?(%%|\||\+|-{3,}|noqa|fmt:|pragma|type: ignore|region|endregion)"
    r"|<!--|-->|^<{7}|^={7}|^>{7}|\b(TODO|FIXME|XXX)\b|^%%|^:::|\ufeff|\u00a0",
    re.MULTILINE,
)


@pytest.mark.parametrize(
    "text",
    ["# %%\nx = 1", "x = 1\n#| echo: false", "<!-- cell -->", "%%capture", "# TODO: y"],
)
def test_stray_markers_are_found(text):
    assert STRAY.search(text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_cells_hold_no_stray_markers(path):
    for cell in read(path).cells:
        assert not STRAY.search(cell.source)
        assert cell.source.strip()
        assert not cell.metadata  # tags are an editor's


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_runs(path, tmp_path):
    stored, notebook = read(path), read(path)
    # One CPU device, as a reader has it, in a folder that is not ours; programs that
    # run for long are optimised.
    quick = [f for f in os.environ["XLA_FLAGS"].split() if f in QUICK_COMPILES[1:]]
    environment = os.environ | {"XLA_FLAGS": " ".join(quick)}
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env=environment)
    assert "stderr" not in [getattr(o, "name", "") for o in outputs(notebook)]
    shown = lambda nb: [len(c.outputs) > 0 for c in code_cells(nb)]
    assert shown(notebook) == shown(stored)
