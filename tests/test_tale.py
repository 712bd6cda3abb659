"""The page of a story: the answer first, a chart a machine, who waits on whom; for other stories too."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aslab.lab._report._figures import other_colour
from aslab.lab._report._ring import ring
from aslab.lab._report._tale import MOST_SPANS, Curve, Entry, Tale, write_tale
from aslab.lab._scenario._recording import Span
from aslab.lab._story._chapters import Row
from aslab.lab._story._machines import MACHINES
from aslab.lab._story._run import Chapter
from aslab.lab._story._tale import as_tale

from .test_report import EVIL, FITS, TOO_WIDE, browser, rects, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["browser"]
CYCLE = ("cache zio_buf_131072", "vmalloc", "reclaim", "writeback", "zvol", "txg_sync", "zio", "z_wr_iss")
SHOWN = "[...document.querySelectorAll('#charts svg')].map((one) => one.getAttribute('viewBox'))"


def chapter(name: str, seed: int = 0) -> Chapter:
    """As the story goes: original is stuck after a moment, the others take 8 seconds."""
    stuck = name == "original"
    steps = [(number / 2, 4_000.0 * number) for number in range(2 if stuck else 17)]
    one = Chapter(name, seed, finished=not stuck, time=1.0 if stuck else 8.0, cycle=CYCLE if stuck else ())
    one.spans = [Span(name, "txg sync", start / 2, start / 2 + 0.5) for start in range(2 if stuck else 16)]
    if stuck:
        one.spans.append(Span(name, "stuck", 0.25, 1.0))
    used = name in ("emergency", "emergency_v2", "aslab")
    one.emergency_max = 7 * used
    one.lowest_free_pages = 0 if name == "pf_memalloc" else 600
    emergency = [(0.0, 0.0), (0.1, 7.0), (0.3, 0.0)] if used else [(0.0, 0.0)]
    one.counters = {"swapped pages": steps, "emergency": emergency, "free pages": [(0.0, 5.0)]}
    return one


ROWS = [Row(machine, (chapter(machine.name), chapter(machine.name, 1))) for machine in MACHINES]
TALE = as_tale(ROWS, 0, "asyncio")
OTHER = Tale(
    title=f"Another story {EVIL}",
    question=f"Which queue starves {EVIL}?",
    about=f"It is another one {EVIL}.",
    seed=7,
    machines=[
        Entry(
            name=f"fair {EVIL}",
            about=f"In turn {EVIL}.",
            outcome="good",
            verdict=f"serves all {EVIL}",
            cells={f"served {EVIL}": f"9 {EVIL}"},
            more={},
            time=3.0,
            finished=True,
            counters={"length": [(0.0, 1.0), (1.0, 5.0)]},
            cycle=(f"a {EVIL}", "b"),
            surprise=f"nobody said so {EVIL}",
        )
    ],
    curves=[Curve("length", "callers", 80), Curve("not there", "none", 40)],
    how_to_read=[f"From left to right {EVIL}."],
    parts={"a": f"the first {EVIL}"},
    terms={f"queue {EVIL}": f"a line of callers {EVIL}"},
    facts={f"loop {EVIL}": f"trio {EVIL}"},
    looks={f"the start {EVIL}": (0.0, 1.0)},
)


def page_of(path: Path, tale: Tale = TALE) -> str:
    write_tale(path / "story.html", tale)
    return (path / "story.html").read_text(encoding="utf-8")


def machines(page: str) -> list[str]:
    """The part of each machine's chart."""
    return re.split(r"<div class=machine>", page.partition("<section id=cycle>")[0])[1:]


def test_the_answer_comes_first_then_table_charts_and_cycle(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "<p class=answer id=answer>Only original. The other 6 finish." in page
    assert re.findall(r"<section id=(\w+)>", page) == ["machines", "charts", "cycle", "took", "terms"]


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        (("aslab", "emergency"), "None does: every run finishes."),
        (("original",), "original. There is no other machine."),
        (("original", "aslab"), "Only original. The other one finishes."),
    ],
)
def test_the_answer_is_what_came(tmp_path: Path, names: tuple[str, ...], answer: str) -> None:
    page = page_of(tmp_path, as_tale([row for row in ROWS if row.machine.name in names], 0, "trio"))
    assert answer in page
    assert ("<section id=cycle>" in page) == ("original" in names)


def test_the_table_has_every_machine_its_figures_and_a_verdict_that_is_more_than_a_colour(tmp_path: Path) -> None:
    table = page_of(tmp_path).partition("<section id=machines>")[2].partition("</section>")[0]
    rows = [re.sub(r"<[^>]*>", "|", row) for row in table.split("<tr>")[2:]]
    assert len(rows) == len(MACHINES)
    assert re.sub(r"\|+", "|", rows[0]) == "|original|✕| gets stuck|0 of 2|-|0 s|0/0"
    assert "|!| finishes, but takes the last page|2 of 2|8.00 s|0 s|0/0" in re.sub(r"\|+", "|", rows[1])
    assert "|✓| finishes, with emergency objects|" in re.sub(r"\|+", "|", rows[3])
    assert re.findall(r"<th scope=col[^>]*>([^<]*)", table) == [
        "Machine",
        "Verdict",
        "finished",
        "time",
        "longest wait",
        "emergency now/most",
    ]


def test_a_machine_that_ends_otherwise_than_the_change_says_is_marked(tmp_path: Path) -> None:
    lucky = replace_chapters(ROWS[0], finished=True)
    told = as_tale([lucky, *ROWS[1:]], 0, "asyncio")
    page = page_of(tmp_path, told)
    assert "! original: the change of 2012 says it gets stuck" in page
    assert "<b>ended as the change of 2012 says</b> 6 of 7" in page
    assert "<b>ended as the change of 2012 says</b> 7 of 7" in page_of(tmp_path)


def replace_chapters(row: Row, **changes: Any) -> Row:
    return Row(row.machine, tuple(replace(one, **changes) for one in row.chapters))


def test_every_machine_has_a_colour_of_its_own_in_table_and_chart(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    keys = re.findall(r"<i class=key style='background:(#\w+)'></i>(\w+)", page)
    colours = {name: {colour for colour, mine in keys if mine == name} for _, name in keys}
    assert list(colours.values()) == [{other_colour(number)} for number in range(len(MACHINES))]
    assert len({other_colour(number) for number in range(8)}) == 8
    for number, part in enumerate(machines(page)):
        assert set(re.findall(r'class="line filled" style="--c:(#\w+)"', part)) == {other_colour(number)}


def test_every_machine_has_a_chart_with_its_curves_over_the_same_time_on_the_same_scale(tmp_path: Path) -> None:
    parts = machines(page_of(tmp_path))
    assert len(parts) == len(MACHINES)
    for machine, part in zip(MACHINES, parts, strict=True):
        assert re.findall(r'viewBox="([^"]*)"', part) == ["0 0 8.16 84", "0 0 8.16 34"]
        names = [f"{machine.name}: swapped pages", f"{machine.name}: emergency"]
        assert re.findall(r'data-of="([^"]*)"', part) == names
        assert len(set(re.findall(r"matrix\([^)]*\)", part))) == 2
    assert {tuple(re.findall(r"matrix\([^)]*\)", part)) for part in parts} == {
        tuple(re.findall(r"matrix\([^)]*\)", parts[0]))
    }
    assert "swapped pages: <output" in parts[1]
    assert ">at most 64,000</output>" in parts[1]
    assert ">none</output>" in parts[1]


def test_being_stuck_is_shaded_to_the_end_and_groups_are_bands(tmp_path: Path) -> None:
    original, other, *_ = machines(page_of(tmp_path))
    assert [(start, length) for start, _, length, _ in rects(original, "shade stuck")] == [(0.25, 7.91)] * 2
    assert "stuck forever" in original
    assert not rects(other, "shade stuck")
    first, second = rects(other, "shade band0"), rects(other, "shade band1")
    assert [start for start, *_ in first[:8]] == list(range(8))
    assert [start for start, *_ in second[:8]] == [number + 0.5 for number in range(8)]
    assert other.count("class=done") == 2
    assert "class=done" not in original


def test_who_waits_on_whom_is_drawn_and_told(tmp_path: Path) -> None:
    part = page_of(tmp_path).partition("<section id=cycle>")[2].partition("</section>")[0]
    assert re.findall(r"<text [^>]*>([^<]*)", part) == list(CYCLE)
    assert part.count("class=arrow") == len(CYCLE)
    assert "hands out buffers" in part
    assert "txg_sync waits on zio" in part
    assert part.count("<li>") == len(CYCLE)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 11])
def test_a_ring_of_any_length_has_boxes_that_do_not_overlap_and_an_arrow_from_each(count: int) -> None:
    drawn = ring([f"part {number}" for number in range(count)])
    boxes = [(float(x), float(y)) for x, y in re.findall(r'<rect x="([^"]*)" y="([^"]*)"', drawn)]
    assert len(set(boxes)) == count == drawn.count("class=arrow")
    for number, (x, y) in enumerate(boxes):
        for other_x, other_y in boxes[:number]:
            assert abs(x - other_x) > 152 or abs(y - other_y) >= 50
    assert "nan" not in drawn


def test_terms_of_the_story_are_explained(tmp_path: Path) -> None:
    terms = re.findall(r"<dt>([^<]*)", page_of(tmp_path))
    assert {"slab", "magazine", "order", "txg", "zvol", "dlock", "GFP"} <= set(terms)
    parts = {part for part in CYCLE if part not in TALE.parts and part.split()[0] not in TALE.parts}
    assert not parts


def test_another_story_has_the_same_page_and_nothing_of_it_is_taken_for_html(tmp_path: Path) -> None:
    page = page_of(tmp_path, OTHER)
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 15
    assert "2012" not in page
    assert "zvol" not in page
    assert "txg" not in page
    assert "is stuck" not in page
    assert "at most 5" in page
    assert page.count("</title>") == page.count("<title>")


def test_many_spans_and_points_are_bounded_and_the_page_says_so(tmp_path: Path) -> None:
    spans = [Span("m", "txg sync", number / 1000, number / 1000 + 0.001) for number in range(5_000)]
    points = [(number / 1000, float(number % 17)) for number in range(20_000)]
    one = replace(OTHER.machines[0], time=20.0, spans=spans, counters={"length": points})
    page = page_of(tmp_path, replace(OTHER, machines=[one] * 10))
    assert f"{MOST_SPANS} of 5,000 spans of" in page
    assert len(page) < 1_500_000


def test_a_page_of_the_story_is_small_and_the_same_each_time(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert len(page) < 100_000
    assert page == page_of(tmp_path)


def test_pages_need_no_library() -> None:
    absent = ("rich", "typer", "pydantic", "numpy")
    modules = "aslab.lab._report._page, aslab.lab._report._tale"
    script = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import {modules}"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("story") / "story.html"
    write_tale(path, TALE)
    return path.as_uri()


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (400, "dark"), (1300, "light"), (1300, "dark")])
def test_page_fits_and_fetches_nothing(browser: Browser, address: str, width: int, scheme: Any) -> None:
    page, seen = visit(browser, address, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate(FITS)
    assert not page.evaluate(TOO_WIDE)
    assert page.locator("#answer").is_visible()
    size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('.lead')).fontSize)")
    assert size == (16 if width == 400 else 18)
    # text in a drawing is as large as the drawing
    text = page.evaluate("document.querySelector('.ring text').getBoundingClientRect().height")
    assert text >= 12
    cells = page.locator("#machines td.number").all()
    assert all(cell.is_visible() for cell in cells)
    page.wait_for_load_state("networkidle")
    assert seen == [address]
    page.close()


def test_a_closer_look_is_taken_by_all_machines_and_given_up_again(browser: Browser, address: str) -> None:
    page, _ = visit(browser, address, viewport={"width": 1300, "height": 900})
    closer, whole = page.locator("#charts button").all()
    assert whole.get_attribute("aria-pressed") == "true"
    closer.click()
    assert set(page.evaluate(SHOWN)) == {"0 0 0.5 84", "0 0 0.5 34"}
    assert closer.get_attribute("aria-pressed") == "true"
    whole.click()
    assert set(page.evaluate(SHOWN)) == {"0 0 8.16 84", "0 0 8.16 34"}
    page.close()


def test_the_pointer_is_told_the_values_of_all_machines(browser: Browser, address: str) -> None:
    page, _ = visit(browser, address, viewport={"width": 1300, "height": 900})
    plot = page.locator("#charts .plot").nth(2)
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box
    page.mouse.move(box["x"] + 4.25 / 8.16 * box["width"], box["y"] + 10)
    values = page.locator("#charts output").all_inner_texts()
    assert values[:4] == ["4,000 pages", "0 objects", "32,000 pages", "0 objects"]
    assert page.locator(".tip").inner_text() == "txg sync, 500 ms"
    page.mouse.move(0, 0)
    assert page.locator("#charts output").first.inner_text() == "at most 4,000"
    page.close()


def test_a_touch_tells_it_too_and_a_touch_elsewhere_takes_it_away(browser: Browser, address: str) -> None:
    page, _ = visit(browser, address, viewport={"width": 400, "height": 800}, has_touch=True)
    assert "draw a finger" in page.locator("#charts .hint").inner_text()
    page.locator("#charts .plot").nth(2).tap()
    assert page.locator(".tip").inner_text() == "txg sync, 500 ms"
    assert "pages" in page.locator("#charts output").first.inner_text()
    page.locator("#charts h2").tap()
    assert page.locator(".tip").is_hidden()
    page.close()


def test_what_is_stuck_says_so_in_its_chart_and_a_curve_ends_where_the_run_does(tmp_path: Path) -> None:
    original, other, *_ = machines(page_of(tmp_path))
    assert original.count("<b class=says>stuck</b>") == 1
    assert "class=says" not in other
    ends = [
        re.findall(r"H([^HV]*)V[^HV]*$", path)[0] for path in re.findall(r'class=step [^>]* d="([^"]*)"', other)
    ]
    assert ends == ["8", "8"]
