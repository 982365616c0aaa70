"""Folders of results: every file is replaced in one go, settings are remembered."""

import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.figure import Figure

from benchmarks import UsageError


def save(path: Path, data: bytes | str) -> None:
    """Replaces a file in one go, so that an interrupted run leaves whole ones."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(part, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def draw(path: Path, figure: Figure) -> None:
    """Saves a figure as PNG, and closes it where pyplot holds it."""
    image = io.BytesIO()
    figure.savefig(image, dpi=150)
    pyplot.close(figure)
    save(path, image.getvalue())


def begin(
    folder: Path, settings: dict[str, Any], old: Sequence[str], resume: bool
) -> None:
    """Keeps the settings and removes what is old; resumed, compares the settings."""
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings))  # a tuple comes back as a list
    if not (resume and path.exists()):
        # Settings first: that also shows whether the folder can be written.
        save(path, json.dumps(settings, indent=2))
        for name in old:
            try:
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                (folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise UsageError(f"cannot replace {name}: {error.strerror}") from None
        return
    try:
        found = json.loads(path.read_text())
        differing = [
            f"{name}={found.get(name)} (now {value})"
            for name, value in settings.items()
            if found.get(name) != value
        ]
    except (OSError, ValueError, AttributeError):
        raise UsageError(f"cannot resume: {path} is not readable") from None
    if differing:
        raise UsageError(
            f"cannot resume: {folder} was made with {', '.join(differing)}; choose"
            " another --output, or drop --resume to overwrite it"
        )
