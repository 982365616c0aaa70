"""A folder of results: every file is replaced in one go, settings are remembered."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import UsageError

__all__ = ["Folder"]


class Folder:
    """Writes files so that an interrupted run leaves whole ones."""

    def __init__(self, path: Path):
        self.path = path
        self.settings = path / "settings.json"

    def create(self) -> None:
        """Makes the folder, or says why it cannot."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write {self.path}: {error.strerror}") from None

    def save(self, path: Path, data: bytes) -> None:
        """Replaces a file in one go."""
        part = path.with_name(path.name + ".part")
        self.create()
        try:
            part.write_bytes(data)
            os.replace(part, path)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None

    def draw(self, path: Path, figure: Figure) -> None:
        """Saves a figure as PNG."""
        image = io.BytesIO()
        figure.savefig(image, dpi=150)
        self.save(path, image.getvalue())

    def begin(
        self, settings: dict[str, Any], old: Sequence[Path], resume: bool
    ) -> None:
        """Starts afresh without old files, or checks that they have these settings."""
        if resume and self.settings.exists():
            try:
                found = json.loads(self.settings.read_text())
                differing = [
                    f"{name}={found.get(name)} (now {value})"
                    for name, value in settings.items()
                    if found.get(name) != value
                ]
            except (OSError, ValueError, AttributeError):
                raise UsageError(
                    f"cannot resume: {self.settings} is not readable"
                ) from None
            if differing:
                raise UsageError(
                    f"cannot resume: {self.path} was made with {', '.join(differing)};"
                    " choose another --output, or drop --resume to overwrite it"
                )
            return
        # Settings first: that also shows whether the folder can be written.
        self.save(self.settings, json.dumps(settings, indent=2).encode())
        for path in old:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise UsageError(f"cannot replace {path}: {error.strerror}") from None
