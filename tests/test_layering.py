"""The plan of the house, read off the source: who imports whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import zojax

ROOT = Path(zojax.__file__).parent
BASE = {"_checks", "_docs", "_keys", "_loops", "_numerics"}
ASKING = {"_directions", "_evaluation", "_mesh_axis", "_objective"}
# Each room: the rooms it may import from, and the packages.
ALLOWED = {
    "_docs": (set(), set()),
    "_keys": ({"_docs"}, {"jax", "numpy"}),
    "_numerics": ({"_checks"}, {"jax", "numpy"}),
    "_loops": ({"_numerics"}, {"jax", "numpy"}),
    "_checks": ({"_docs"}, {"jax", "numpy"}),
    "weights": (set(), {"jax"}),
    "_radazo": (BASE, {"jax", "optax"}),
    "perturbations": (BASE, {"jax", "numpy"}),
    "_objective": ({"_checks", "_docs", "_numerics"}, {"jax", "optax"}),
    "_mesh_axis": ({"_docs", "_numerics"}, {"jax"}),
    "_directions": (
        BASE | {"_mesh_axis", "_objective", "perturbations"},
        {"jax"},
    ),
    "_evaluation": (BASE | ASKING | {"perturbations"}, {"jax", "numpy"}),
    "queries": (ASKING, set()),
    "_check_smoothing": (BASE | {"_objective", "perturbations"}, {"jax", "numpy"}),
    "_spall": (BASE | {"_objective"}, {"jax", "optax"}),
    "_calibration": (
        BASE | {"_objective", "_spall", "perturbations"},
        {"jax", "numpy"},
    ),
    "_signal": (set(), {"numpy"}),
    "_smoothing_error": (set(), {"numpy"}),
    "_diagnose": (
        BASE
        | {"_calibration", "_check_smoothing", "_directions", "_evaluation"}
        | {"_objective", "_signal", "_smoothing_error", "perturbations"},
        {"jax", "numpy"},
    ),
    "_inject": (
        {"_estimators", "_numerics", "_objective"},
        {"jax", "numpy", "optax"},
    ),
    "_iterates": (BASE | {"_objective"}, {"jax", "optax"}),
    "shaping": ({"_checks", "_estimators"}, {"jax"}),
    "external": (
        {"_checks", "_docs", "_estimators", "_numerics", "_objective"},
        {"jax", "numpy", "optax"},
    ),
    "cores": ({"_checks", "_numerics", "_objective", "perturbations"}, {"jax"}),
    # Imported by those who have flax, not by us.
    "nnx": ({"_objective"}, {"flax", "jax"}),
    "_estimators": (
        BASE | ASKING | {"perturbations", "weights"},
        {"jax", "numpy", "optax"},
    ),
}
# What estimators share; beside it each is a file of its own.
SHARED = {"log", "rounds", "step"}
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
    """_keys, _numerics <- perturbations <- _directions, _evaluation <- estimators."""
    ours, others, dotted = imports(file)
    rooms, packages = ALLOWED[room(file)]
    assert ours <= rooms
    assert others <= packages
    assert not [name for name in dotted if "._src" in name]


# Directions are mapped over in _directions and _evaluation alone, with what a sampler
# gives them (_sampler) and _mesh_axis for devices. _keys and _noise map over leaf keys;
# _low_rank, _lazy and _aligned_replay over parts of rows that are never held; the
# interpreter runs the loops of other people's programs.
MAPPING = {"_directions", "_evaluation", "_keys", "_loops", "_mesh_axis"}
PARTS = ("_sampler", "_noise", "_aligned_replay", "_lazy")
PARTS += ("_low_rank/interpreter", "_low_rank/sampler")
MAPPING |= {f"perturbations/{name}" for name in PARTS}


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("_estimators/")])
def test_estimators_do_not_import_each_other(file):
    """Only what they share."""
    _, _, dotted = imports(file)
    inside = {n.split(".")[2] for n in dotted if n.startswith("zojax._estimators.")}
    assert inside <= SHARED


def test_no_file_and_no_step_is_long():
    """A file holds one idea; the body of an update is read at a glance."""
    for file, path in FILES.items():
        text = path.read_text()
        assert len(text.splitlines()) <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name in ("body", "update"):
                assert node.end_lineno - node.lineno < 40, (file, node.name)


def test_capabilities_are_fields():
    """Nothing looks for hidden attributes of a sampler."""
    for file, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "")
            if called in ("hasattr", "getattr", "setattr"):
                assert "sampler" not in ast.unparse(node.args[0]), (file, node.lineno)
                assert "base" not in ast.unparse(node.args[0]), (file, node.lineno)


@pytest.mark.parametrize("file", sorted(set(FILES) - MAPPING))
def test_vmap_and_scan_have_their_places(file):
    """Everywhere else a program is one of a single direction."""
    tree = ast.parse(FILES[file].read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"vmap", "scan", "while_loop", "fori_loop", "shard_map", "pmap"}


def test_the_platform_is_asked_for_in_one_place():
    """Where a program is lowered, not where Python runs."""
    asked = ("default_backend", "platform_dependent", ".platform", "local_devices")
    found = {f for f, p in FILES.items() for name in asked if name in p.read_text()}
    assert found == {"_numerics"}


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
