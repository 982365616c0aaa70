"""Docstrings as the site reads them: sections and references by the names it knows."""

import re
from pathlib import Path

import griffe

PAGES = Path(__file__).parent.parent / "notebooks" / "reference"
LISTED = re.findall(
    r"^::: (\S+)", "\n".join(p.read_text() for p in PAGES.glob("*.md")), re.MULTILINE
)
BY_NAME = {path.rpartition(".")[2]: path for path in LISTED}


def _reference(role: re.Match) -> str:
    """A role of Sphinx as a link, if the reference has what it names."""
    name = role[1].lstrip("~")
    path = name if name in LISTED else BY_NAME.get(name)
    return f"[`{name}`][{path}]" if path else f"`{name}`"


class Docstrings(griffe.Extension):
    """Examples are programs, and what is named is linked."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Rewrites the docstring of what was found."""
        if obj.docstring is None:
            return
        text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
        text = re.sub(r":(?:func|class|mod|data):`([^`]+)`", _reference, text)
        obj.docstring.value = text.replace("``", "`")
