"""What is said in more than one place is the same there: versions, names of files."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import zojax

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
clone = pytest.mark.skipif(
    not (ROOT / ".github").exists(), reason="hidden files are not in an sdist"
)
# What is read first; all else at the top is hidden.
TOP = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "pyproject.toml"}
TOP |= {"benchmarks", "notebooks", "tests", "zojax"}


def load(name):
    return yaml.safe_load((ROOT / name).read_text())


def pinned(requirements, package):
    """The version of ``package==version``, which has to be there once."""
    found = [r.split("==")[1] for r in requirements if r.startswith(f"{package}==")]
    assert len(found) == 1, (package, requirements)
    return found[0]


def matrix(workflow, job):
    return load(f".github/workflows/{workflow}")["jobs"][job]["strategy"]["matrix"]


@clone
def test_workflows_run_the_versions_of_jax_that_the_project_names():
    """The floor of pyproject.toml, the usual one of .ci/versions, and the newest."""
    floors = dict(d.split(">=") for d in PROJECT["project"]["dependencies"])
    assert floors["jax"] == floors["jaxlib"]
    (usual,) = re.findall(r'"jax==([\d.]+)"', (ROOT / ".ci/versions").read_text())
    expected = [f"{floors['jax']}.0", usual, "newest"]
    assert matrix("tests.yml", "versions")["jax"] == expected


@clone
def test_workflows_run_the_pythons_that_the_project_names():
    classifiers = "\n".join(PROJECT["project"]["classifiers"])
    pythons = re.findall(r"^Programming .* (3\.\d+)$", classifiers, re.MULTILINE)
    assert PROJECT["project"]["requires-python"] == f">={pythons[0]}"
    assert matrix("tests.yml", "versions")["python"] == pythons
    assert matrix("package.yml", "package")["python"] == pythons


@clone
@pytest.mark.parametrize("tool", ["mypy", "ruff"])
def test_hooks_have_the_versions_of_the_test_extra(tool):
    (repo,) = load(".pre-commit-config.yaml")["repos"]
    hooks = [hook for hook in repo["hooks"] if hook["entry"].startswith(tool)]
    assert hooks
    version = pinned(PROJECT["project"]["optional-dependencies"]["test"], tool)
    for hook in hooks:
        assert pinned(hook["additional_dependencies"], tool) == version


@clone
def test_citation_names_this_version():
    assert load(".github/CITATION.cff")["version"] == zojax.__version__


def test_changelog_starts_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    first = re.search(r"^## (.*)$", text, re.MULTILINE)[1]
    when = r"\((unreleased|\d{4}-\d\d-\d\d)\)"
    assert re.fullmatch(f"{re.escape(zojax.__version__)} {when}", first)


@clone
def test_only_what_is_read_first_lies_at_the_top():
    command = ["git", "ls-files", "-z"]
    try:
        out = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git does not say what it tracks here: {error}")
    top = {name.split("/")[0] for name in out.stdout.decode().split("\0") if name}
    assert {name for name in top if not name.startswith(".")} <= TOP
