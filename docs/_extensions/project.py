"""What the pages take from the project around them: its files, its names, its links.

- A line ``<!-- file: NAME -->`` stands for a file at the top of the project.
- A link to a file that is no page leads to that file on GitHub, and must exist.
- The names in names.md lead to their place in the reference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
SOURCE = "https://github.com/fastvi/fastvi/blob/main"
# Files at the top that are pages here.
PAGES = {
    "CHANGELOG.md": "/changelog.md",
    "CONTRIBUTING.md": "/contributing.md",
    "SECURITY.md": "/security.md",
    "README.md": "/index.md",
}
LINK = re.compile(r"(?<!!)\]\((?!https?:|mailto:|#|/)([^)#\s]+)(#[^)\s]*)?\)")
logger = logging.getLogger(__name__)


def with_links(text: str, folder: Path, page: str) -> str:
    """Make the links of a text that lies in a folder lead somewhere from the site."""

    def replaced(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        path = Path(os.path.normpath(folder / target))
        if not path.exists():
            logger.warning("a link leads nowhere: %s", target, location=page)
            return found[0]
        if path.is_relative_to(DOCS) and path.suffix == ".md":
            return f"](/{path.relative_to(DOCS)}{anchor})"
        inside = str(path.relative_to(ROOT))
        return f"]({PAGES.get(inside) or f'{SOURCE}/{inside}'}{anchor})"

    return LINK.sub(replaced, text)


def with_names(text: str) -> str:
    """Turn the names in the tables of names.md into references."""
    place, lines = "", []
    for line in text.splitlines():
        if found := re.match(r"## `(.*)`", line):
            place = found[1]
        row = re.sub(r"^\| `(\w+)` \|", rf"| {{py:obj}}`\1 <{place}.\1>` |", line)
        lines.append(row)
    return "\n".join(lines) + "\n"


def read(app: Sphinx, page: str, source: list[str]) -> None:
    text = source[0]
    folder = (DOCS / page).parent
    text = with_links(text, folder, page)

    def included(found: re.Match[str]) -> str:
        return with_links((ROOT / found[1]).read_text(), ROOT, page)

    text = re.sub(r"^<!-- file: (\S+) -->$", included, text, flags=re.MULTILINE)
    source[0] = with_names(text) if page == "names" else text


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
