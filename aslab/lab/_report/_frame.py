"""The frame of every page: style and script inside, nothing fetched from anywhere.

A page can be kept, sent and read offline. Without JavaScript it lacks zoom and the values under the pointer,
and nothing else.
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
    """A part of the page with its heading, both HTML.

    :param name: its id, for links
    """
    return f"<section{f' id={name}' if name else ''}><h2>{title}</h2>{content}</section>"
