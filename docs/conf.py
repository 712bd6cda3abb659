"""The documentation as a site: how Sphinx builds it. `scripts/docs` runs it, and fails on every warning."""

from __future__ import annotations

import inspect
import os
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]
os.environ["ASLAB_PURE"] = "1"  # methods in C have no signature

import aslab  # noqa: E402

project = "aslab"
html_title = "aslab"
copyright = "the authors of aslab"  # noqa: A001 - the name is Sphinx'

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinxcontrib.mermaid", "llms"]
exclude_patterns = ["_build", "_ext", "figures", "grafana"]

myst_heading_anchors = 4  # links to headings are written as code hosts spell them
myst_fence_as_directive = ["mermaid"]
mermaid_fullscreen = False

default_role = "py:obj"  # `names` in docstrings
autodoc_default_options = {
    "members": True,
    "inherited-members": "BaseException, Enum, Flag, Generic, Protocol, tuple, BaseModel, BufferedProtocol",
}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# Names of other packages lead nowhere: their documentation is not at hand. Type variables have none.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(anyio|asyncio|collections|contextlib|ctypes|mmap|os|pathlib|random|shutil|socket|threading)\..*",
    ),
    (r"py:.*", r"(_pytest|opentelemetry|prometheus_client|npt|types)\..*"),
    (r"py:class", r"(.*\.)?T|\*?Args|Array|NoneType|EllipsisType|.*Keywords"),
    (r"py:.*", r"aslab\.(.*\.)?_.*|AsyncContextManager|Collector|Kind|NoThread|Garbage|dict\[str"),
]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"

MADE_BY_ASLAB = {
    *("Allocator", "Buffer", "Cache", "Events", "Faults", "Gather", "Lease", "ManyLease", "Pin"),
    *("BlockingClient", "BlockingReceiver", "Claim", "Client", "Peer", "Receiver", "Service", "Shared"),
    *("Lab", "Scenario"),
}
"""Classes that nobody else makes: what their constructors take is of no interest."""


def read_sources(_app: Sphinx) -> None:
    """The names of ``aslab`` say that they are from there: give it what their sources say of fields."""
    top = ModuleAnalyzer.for_module("aslab")
    top.analyze()
    for module in [name for name in sys.modules if name.startswith("aslab._")]:
        source = ModuleAnalyzer.for_module(module)
        source.analyze()
        source.overloads.clear()  # the signature of `create_cache` that lists all options is none of these
        top.attr_docs.update({key: doc for key, doc in source.attr_docs.items() if key[0] in aslab.__all__})
        top.annotations.update({key: of for key, of in source.annotations.items() if key[0] in aslab.__all__})
        for name, place in source.tagorder.items():
            top.tagorder.setdefault(name, place)
            if name.startswith("Front."):  # what a cache inherits is what its callers use most
                top.tagorder[name.replace("Front.", "Cache.")] = place - 10_000


PLACES = re.compile(r"~|\b(?:collections\.abc\.|typing\.|aslab[.\w]*\.(?=T\b))")
"""Where a type is from, in the text of a signature."""


def dress_signature(
    _app: Sphinx, what: str, name: str, thing: object, _options: object, signature: str | None, returns: str
) -> tuple[str, str] | None:
    """Show what a caller sees.

    That is no parameters where the constructor is not called by hand, and an async context manager where its
    function is written as a generator.
    """
    if signature is None:
        return None
    if what == "class" and name.rpartition(".")[2] in MADE_BY_ASLAB:
        signature = ""
    if callable(thing) and inspect.isasyncgenfunction(inspect.unwrap(thing)) and hasattr(thing, "__wrapped__"):
        returns = re.sub(r"[\w.]*AsyncIterator\[", "AsyncContextManager[", returns)
    signature = re.sub(r"<(\w+): (\d+)>", r"\1(\2)", signature).replace("= Ellipsis", "= ...")
    shown = [PLACES.sub("", text or "") for text in (signature, returns)]
    return shown[0], shown[1]


PAGE = re.compile(r"\bdocs/([a-z-]+)\.md\b")


def link_pages(_app: Sphinx, _what: str, _name: str, _thing: object, _options: object, text: list[str]) -> None:
    """A docstring names a page by its file, for readers of the source; on the site that is a link."""
    text[:] = [PAGE.sub(r":doc:`/\1`", line) for line in text]


def show_programs(_app: Sphinx, _what: str, _name: str, _thing: object, _options: object, text: list[str]) -> None:
    """An indented paragraph of a docstring is shown as it stands: a program, or a table of words."""
    for number in reversed(range(1, len(text))):
        before = next((line for line in reversed(text[:number]) if line), "")
        if text[number].startswith("    ") and not text[number - 1] and before[:1] not in (" ", ":", ".", ""):
            text[number:number] = ["::", ""]


def find_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element
) -> nodes.Element | None:
    """Let a docstring say `Cache.alloc` wherever it stands: look for a public name that ends so."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    target = node["reftarget"].removeprefix("aslab.")
    found = [name for name, _ in domain.find_obj(env, None, None, target, None, 1)]
    if not found:
        return None
    nearest = min(found, key=len)  # `alloc` is that of aslab.Cache rather than that of some class of the lab
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", nearest, node, text)


def take_anchors(_app: Sphinx, _page: str, text: list[str]) -> None:
    """An anchor set by hand, as code hosts read it, is a target in MyST."""
    text[0] = re.sub(r'^<a id="([^"]+)"></a>', r"(\1)=\n", text[0], flags=re.MULTILINE)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", read_sources)
    app.connect("autodoc-process-signature", dress_signature)
    app.connect("autodoc-process-docstring", link_pages)
    app.connect("autodoc-process-docstring", show_programs)
    app.connect("source-read", take_anchors)
    app.connect("missing-reference", find_short_name)
