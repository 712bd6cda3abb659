"""Every example runs, without a warning, and prints what it promises."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOREIGN = {"torch", "pyarrow", "cv2", "h5py", "zstandard"}
"""Libraries that the docs show at work, and no extra installs."""
EXPECTED = {
    "direct_copy.py": r"33566777 bytes copied at .* through 4 buffers\nthe same\n",
    "frames.py": r"verified 100 frames\n2 consumers killed, 0 of \d+ buffers still held\n",
    "simulated_hour.py": r"wait 10 ms, \d+ emergency objects, 1 deadlock\n.* 0 emergency .* well\n36\d\d sim",
    "smallest_asyncio.py": r"hello from 4 MiB at 0x[0-9a-f]+\n(.*\n){2}frames ",
    "smallest_trio.py": r"hello from 4 MiB at 0x[0-9a-f]+\n(.*\n){2}frames ",
    "tcp_echo.py": r"200 clients, 37 MiB echoed, at most \d+ buffers\n1000 allocations, .*; 0 still held",
    "staging.py": r"hangs: 21 batches, \d+ of them .*\nit works again: 21 batches, 0 of them .*\nthe same\n",
    "stuck_growth.py": r"0\.5  True     True +[1-8] +\d+\n(.*\n)*    3\.0  False    False +0 .*\ndeadlocks: \d",
    "upload_service.py": r"50 of 50 uploads of 4 MiB answered with the right checksum\n",
    "upload_to_worker.py": r"4 of 4 .*\n.* hangs: HTTP/1.1 503 .*\n.* 4 of 4 rightly\n0 of 4 buffers still held\n",
}


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "is DEADLOCKED" not in line]  # growth stuck, or just slow
    assert not told, done.stderr
    return done.stdout


def test_every_example_is_here() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_example_runs(name: str) -> None:
    assert re.search(EXPECTED[name], run(f"examples/{name}"))


def _blocks() -> list[tuple[str, str]]:
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)):
            found.append((f"{path.name}-{number}", block))
    return found


@pytest.mark.parametrize(("name", "block"), _blocks(), ids=[name for name, _ in _blocks()])
def test_code_in_the_docs_runs(name: str, block: str, tmp_path: Path) -> None:
    for library in FOREIGN & set(re.findall(r"^import (\w+)", block, re.MULTILINE)):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    script = tmp_path / "block.py"
    script.write_text(block)
    run(str(script))


def _anchors(path: Path) -> set[str]:
    """What a link into a page may name: its headings, as code hosts spell them, and anchors set by hand."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)  # links leave their text
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_in_the_docs_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked), target
