"""The plan of the house, read off the source: who imports whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import zojax

ROOT = Path(zojax.__file__).parent
ESTIMATORS = {"two_point", "dap", "zoar", "reinforce", "aligned_projection"}
# Each room: the rooms it may import from, and the packages.
ALLOWED = {
    "_base": (set(), {"jax", "numpy", "optax"}),
    "weights": (set(), {"jax"}),
    "radazo": (set(), {"jax", "optax"}),
    "perturbations": ({"_base"}, {"jax", "numpy"}),
    "_spread": ({"_base"}, {"jax"}),
    "queries": ({"_base", "_spread", "perturbations"}, {"jax"}),
    "smoothing": ({"_base", "perturbations", "queries"}, {"jax"}),
    **{
        name: ({"_base", "perturbations", "queries", "weights"}, {"jax", "optax"})
        for name in ESTIMATORS
    },
}
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}


def room(file):
    return file.split("/")[0]


def imports(file):
    """Returns (rooms of ours, packages of others, dotted names)."""
    tree = ast.parse(FILES[file].read_text())
    dotted = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            dotted |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.split(".")[1] for name in dotted if name.startswith("zojax.")}
    others = {name.split(".")[0] for name in dotted} - {"zojax"}
    return ours - {room(file)}, others - set(sys.stdlib_module_names), dotted


def test_every_file_has_its_room():
    assert {room(file) for file in FILES} == set(ALLOWED)


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_layers(file):
    """_base <- perturbations <- queries <- estimators; weights stands alone."""
    ours, others, dotted = imports(file)
    rooms, packages = ALLOWED[room(file)]
    assert ours <= rooms
    assert others <= packages
    assert not [name for name in dotted if "._src" in name]


# _spread is its part for devices; _noise maps over leaf keys; low_rank, lazy and
# _replayed over parts of rows that are never held; _factored runs the loops of other
# people's programs.
MAPPING = {"queries", "_spread"}
PARTS = ("_noise", "_factored", "_replayed", "lazy", "low_rank")
MAPPING |= {f"perturbations/{name}" for name in PARTS}


@pytest.mark.parametrize("file", sorted(set(FILES) - MAPPING))
def test_vmap_and_scan_live_in_queries(file):
    """Directions are mapped over in queries alone."""
    tree = ast.parse(FILES[file].read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"vmap", "scan", "while_loop", "fori_loop", "shard_map", "pmap"}


def test_import_takes_only_jax_and_optax():
    """``import zojax`` loads no package that an install of zojax does not bring."""
    code = (
        "import sys, optax; before = set(sys.modules); import zojax;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT.parent,
    )
    assert out.stdout.strip() == "['zojax']"
