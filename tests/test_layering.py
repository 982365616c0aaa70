"""The plan of the house, read off the source: who imports whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import zojax

ROOT = Path(zojax.__file__).parent
# Each room: the rooms it may import from, and the packages.
ALLOWED = {
    "_keys": (set(), {"jax", "numpy"}),
    "_numerics": (set(), {"jax"}),
    "_checks": (set(), {"jax", "numpy"}),
    "_objective": ({"_numerics"}, {"jax", "optax"}),
    "_mesh_axis": ({"_numerics"}, {"jax"}),
    "weights": (set(), {"jax"}),
    "_radazo": (set(), {"jax", "optax"}),
    "perturbations": ({"_checks", "_keys", "_numerics"}, {"jax", "numpy"}),
    "queries": (
        {"_checks", "_keys", "_mesh_axis", "_numerics", "_objective", "perturbations"},
        {"jax"},
    ),
    "_check_smoothing": ({"_keys", "_numerics", "perturbations", "queries"}, {"jax"}),
    "_estimators": (
        {
            "_checks",
            "_keys",
            "_numerics",
            "_objective",
            "perturbations",
            "queries",
            "weights",
        },
        {"jax", "optax"},
    ),
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
    """_keys, _numerics <- perturbations <- queries <- estimators, without siblings."""
    ours, others, dotted = imports(file)
    rooms, packages = ALLOWED[room(file)]
    assert ours <= rooms
    assert others <= packages
    assert not [name for name in dotted if "._src" in name]


# _mesh_axis is its part for devices; _keys and _noise map over leaf keys; _low_rank,
# _lazy and _aligned_replay over parts of rows that are never held; the interpreter runs
# the loops of other people's programs.
MAPPING = {"_keys", "queries", "_mesh_axis"}
PARTS = ("_noise", "_aligned_replay", "_lazy")
PARTS += ("_low_rank/interpreter", "_low_rank/sampler")
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
