"""The template of every page, with style and script included; a page fetches nothing.

A page can be kept, sent and read offline. Without JavaScript it only lacks zoom and the values under the
pointer.
"""

from __future__ import annotations

import os
from pathlib import Path
from string import Template

from ._figures import text

_HERE = Path(__file__).parent


def write_page(path: str | os.PathLike[str], title: str, body: str) -> None:
    """Write one HTML page. Does not suspend; blocks while it writes.

    :param body: HTML
    :raises OSError: if the file cannot be written
    """
    style, script, template = (
        (_HERE / name).read_text(encoding="utf-8") for name in ("_frame.css", "_frame.js", "_frame.html")
    )
    page = Template(template).substitute(title=text(title), style=style, script=script, body=body)
    Path(path).write_text(page, encoding="utf-8", errors="replace", newline="\n")


def section(title: str, content: str, name: str = "") -> str:
    """A section of the page; title and content are HTML.

    :param name: its id, for links
    """
    return f"<section{f' id={name}' if name else ''}><h2>{title}</h2>{content}</section>"
