"""The pages: every block of Python runs, links lead somewhere, and the reference has every public name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

import aslab

ROOT = Path(__file__).parent.parent
FOREIGN = {"torch", "pyarrow", "cv2", "h5py", "zstandard"}
"""Libraries that the docs show at work, and no extra installs."""
WITH_CODE = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.mark.parametrize("page", WITH_CODE, ids=names(WITH_CODE))
def test_the_blocks_of_a_page_run_in_order_and_print_what_stands_below(
    page: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    python = PythonEvaluator()

    def run(example: Example) -> None:
        if "__main__" not in example.parsed:
            python(example)
            return
        program = tmp_path / "program.py"  # it starts processes, which import it
        program.write_text(example.parsed)
        subprocess.run([sys.executable, "-W", "error", program], check=True, timeout=60)

    def compare(example: Example) -> None:
        assert capfd.readouterr().out == example.parsed

    blocks = CodeBlockParser("python", run), CodeBlockParser("output", compare)
    absent = set()
    for example in Document.parse(str(page), *blocks, SkipParser(), encoding="utf-8"):
        try:
            example.evaluate()
        except ModuleNotFoundError as error:
            if error.name not in FOREIGN:
                raise
            absent.add(error.name)
    assert not [record for record in caplog.records if record.exc_info]  # something raised where nobody looks
    if absent:
        pytest.skip(f"not installed: {', '.join(sorted(absent))}; all other blocks ran")


def in_the_reference(directives: str) -> set[str]:
    text = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.rst"))
    return set(re.findall(rf"^\.\. auto(?:{directives}):: (\S+)$", text, re.MULTILINE))


def test_every_public_name_is_in_the_reference() -> None:
    missing = set(aslab.__all__) - in_the_reference("class|exception|function")
    assert not missing, "docs/reference: say in which page these belong"


def test_every_public_module_is_in_the_reference() -> None:
    public = set()
    for path in (ROOT / "aslab").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if "._" not in name and re.search("^__all__ = ", path.read_text(), re.MULTILINE):
            public.add(name)
    assert len(public) > 10
    elsewhere = {"aslab", "aslab.bench"}  # name by name; a command
    assert not public - elsewhere - in_the_reference("module"), "docs/reference: give these a page"


def _anchors(path: Path) -> set[str]:
    """What a link into a page may name: its headings, as code hosts spell them, and anchors set by hand."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)  # links leave their text
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


def test_every_page_is_linked_from_the_text_of_another() -> None:
    docs = ROOT / "docs"
    pages = {*docs.glob("*.md"), *(docs / "reference").glob("*.rst")} - {docs / "index.md"}
    linked = set()
    for page in [ROOT / "README.md", *docs.glob("*.md")]:
        found = re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text())
        linked |= {(page.parent / target).resolve() for target in found} - {page}
    assert len(pages) > 30
    assert not pages - linked, "docs/index.md: list these"


LINKED = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.md")]


@pytest.mark.parametrize("page", LINKED, ids=names(LINKED))
def test_links_in_the_docs_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked), target
