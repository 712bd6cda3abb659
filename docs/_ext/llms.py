"""``llms.txt`` of the site: a list of its pages in Markdown, with the first sentence of each, for language models.

The format is that of llmstxt.org. Pages link to their sources, which are Markdown too; those that are made of
docstrings, or of a file elsewhere, link to what was built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import toctree
from sphinx.application import Sphinx

SENTENCE = re.compile(r"(.+?[.?!])(?:\s|$)", re.DOTALL)


def lines(app: Sphinx) -> Iterator[str]:
    """The file, line by line."""
    index = app.env.get_doctree("index")
    yield f"# {app.config.project}\n"
    yield f"> {first_sentence(index)}\n"
    for tree in index.findall(toctree):
        yield f"\n## {tree['caption']}\n\n"
        for _, page in tree["entries"]:
            doctree = app.env.get_doctree(page)
            path = app.env.doc2path(page)
            written = path.suffix == ".md" and "{include}" not in path.read_text(encoding="utf-8")
            source = f"_sources/{page}.md.txt" if written else f"{page}.html"
            yield f"- [{app.env.titles[page].astext()}]({source}): {first_sentence(doctree)}\n"


def first_sentence(page: nodes.document) -> str:
    """What the page says of itself: the first sentence of its first paragraph."""
    text = " ".join(next(iter(page.findall(nodes.paragraph))).astext().split())
    match = SENTENCE.match(text)
    return match[1] if match else text


def write(app: Sphinx, error: Exception | None) -> None:
    """After a build of the site."""
    if error is None and app.builder.name == "html":
        Path(app.outdir, "llms.txt").write_text("".join(lines(app)), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
