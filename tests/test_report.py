"""The report of a run: what stands on it, that it stays small, and that a browser shows it without the network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aslab.lab._report import _timeline
from aslab.lab._report._bounds import histogram, thinned, waiting_longest
from aslab.lab._report._figures import COLOURS, PALETTE, lasting, nice, plain
from aslab.lab._report._page import MOST_LISTED, MOST_STUCK, write_report
from aslab.lab._report._rows import by_row
from aslab.lab._report._timeline import ROW, timeline
from aslab.lab._scenario._recording import Kind, Moment, Recording, Span
from aslab.lab._scenario._result import Result, Verdict

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 120_000.0
"""Milliseconds that the browser may take on a busy machine."""
EVIL = "<script>alert(1)</script>&amp;'\"</title>$x"
RESULT = Result(
    scenario=f"stuck for three seconds {EVIL}",
    about=f"The backend gets stuck. {EVIL}",
    seed=42,
    loop="trio",
    real_time=False,
    verdicts=(
        Verdict("longest_wait at most 150 ms", "2.9 s", "3.150000 writer-4 waits"),
        Verdict(f"nobody fails {EVIL}", f"nobody {EVIL}"),
    ),
    log_sha256="0123456789abcdef" * 4,
    events=18342,
    duration=10.0,
    emergency_max=7,
    deadlocks=1,
    longest_wait=2.9,
    stuck=(f"writer-1 waits on an object of cache 'frames' {EVIL}",),
    figures={f"grows {EVIL}": 9, "p99": 812.3456789, "slab bytes": 8388608, "never": float("inf")},
)


def deadlock(tasks: int = 12) -> Recording:
    """From 3 s to 6 s no slab comes: everybody waits, then goes on with emergency objects."""
    recording = Recording()
    for number in range(tasks):
        row = f"writer-{number}" if number else f"a writer with a very long name {EVIL}"
        for start in (0.0, 1.0, 2.0, 6.5, 8.0):
            recording.tasks.append(Span(row, "holding", start + number / 40, start + 0.9, "frames"))
        recording.tasks.append(Span(row, "holding", 8.5, 9.0, "inodes"))  # as well as the other one
        recording.tasks.append(Span(row, "waiting", 3.0, 3.2 + number / 10, "frames"))
        recording.tasks.append(Span(row, "emergency", 3.2 + number / 10, 6.0, EVIL))
        recording.waits.append(0.2 + number / 10)
    recording.worker = [
        Span("frames", "growing", 0, 0.2),
        Span("frames", "stuck", 3, 6),
        Span("frames", "failed", 7, 8),
    ]
    recording.caches = [Span("frames", "GROWING", 0, 0.2), Span("frames", "DEADLOCKED", 3.1, 6)]
    recording.moments = [Moment("plan", 3, f"stuck {EVIL}"), Moment("writer-3", 4.5, "gave up")]
    steps: list[float] = [0, 1, 2, 3, 4, 6, 9]
    recording.counters = {
        "held": [(time, 3 * time % 11) for time in steps],
        "emergency": [(time, time % 5) for time in steps],
        "free in slabs": [(time, 8 - time % 4) for time in steps],
        "free pages": [(time, 4096 - 100 * time) for time in steps],
    }
    return recording


def page_of(path: Path, result: Result = RESULT, recording: Recording | None = None) -> str:
    write_report(path / "report.html", result, recording or deadlock())
    return (path / "report.html").read_text(encoding="utf-8")


def rects(drawn: str, look: str) -> list[tuple[float, ...]]:
    """Of the groups that look so: start, pixels from the top, length, height."""
    groups = re.findall(rf'<g class="{look}"[^>]*>(.*?)</g>', drawn)
    found = re.findall(r'<rect x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)">', "".join(groups))
    return [tuple(map(float, one)) for one in found]


def test_page_tells_the_run_and_what_came_of_it_without_javascript(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    for text in ("Failed: 1 of 2 expectations broken", "3.150000 writer-4 waits", "2.9 s", RESULT.log_sha256):
        assert text in page
    for text in ("8,388,608", "812.346", "12 waited: half of them at most 700 ms", "18,342", "gave up", "inf"):
        assert text in page
    assert "Where the run was stuck" in page


def test_page_of_a_run_that_passed_and_saw_nothing_says_so(tmp_path: Path) -> None:
    result = replace(RESULT, verdicts=(), stuck=(), figures={})
    page = page_of(tmp_path, result, Recording())
    assert "Passed: nothing was expected" in page
    assert "No caller had to wait." in page
    assert "stuck</h2>" not in page
    page = page_of(tmp_path, replace(result, verdicts=RESULT.verdicts[1:]), Recording())
    assert "Passed: every expectation was met" in page


def test_nothing_given_is_taken_for_html(tmp_path: Path) -> None:
    recording = deadlock()
    recording.counters[EVIL] = [(0, 1), (5, 2)]
    page = page_of(tmp_path, recording=recording)
    assert "<script>alert" not in page
    assert page.count("</title>") - page.count("<title>") == 0
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;") >= 8


def test_page_is_small_and_has_no_address_to_fetch_from(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert len(page) < 150_000
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", page)


def test_same_run_same_bytes(tmp_path: Path) -> None:
    write_report(tmp_path / "1", RESULT, deadlock())
    write_report(tmp_path / "2", RESULT, deadlock())
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_errors_of_writing_are_the_callers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "missing" / "report.html", RESULT, deadlock())


def test_every_kind_has_a_colour() -> None:
    assert set(get_args(Kind)) <= COLOURS.keys()


def luminance(colour: str) -> float:
    """As the WCAG have it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colour", sorted({*COLOURS.values(), *PALETTE}))
def test_every_colour_can_be_seen_on_the_light_page_and_on_the_dark_one(colour: str) -> None:
    light, dark, own = luminance("#ffffff"), luminance("#1c2024"), luminance(colour)
    assert (light + 0.05) / (own + 0.05) >= 3
    assert (own + 0.05) / (dark + 0.05) >= 3


def test_no_legend_has_a_colour_twice() -> None:
    recording = deadlock()
    recording.counters |= {f"other {number}": [(0, number), (1, 0)] for number in range(1, 5)}
    legends = re.findall(r"<ul class=legend>(.*?)</ul>", timeline(recording, 10))
    colours = [re.findall(r"background:(#\w+)", one) for one in legends]
    assert [len(one) for one in colours] == [8, 7, 1]
    assert all(len(one) == len(set(one)) for one in colours)


def test_what_a_task_does_at_once_is_drawn_beside_and_not_over_each_other() -> None:
    spans = [Span("w", "holding", 0, 4), Span("w", "holding", 1, 2), Span("v", "holding", 2, 3)]
    (_, first, _, height), (_, second, _, same), (_, alone, _, whole) = rects(
        timeline(Recording(tasks=spans), 4), "bar"
    )
    assert height == same
    assert first + height <= second + 1e-3
    assert (first + second + height) / 2 == pytest.approx(1.5 * ROW)  # on either side of the middle of row 1
    assert (alone + whole / 2, whole) == pytest.approx((2.5 * ROW, 2 * height), abs=0.01)


def test_a_stall_is_shaded_in_every_area_and_those_that_overlap_are_one() -> None:
    recording = deadlock()
    recording.caches.append(Span("inodes", "DEADLOCKED", 7, 7.5))
    drawn = timeline(recording, 10)
    shades = rects(drawn, "shade stuck")
    assert [(start, length) for start, _, length, _ in shades] == [(3, 3), (7, 0.5)] * 3  # rows, objects, pages
    assert "Shaded: no slab arrives." in drawn
    calm = timeline(Recording(tasks=recording.tasks), 10)
    assert not rects(calm, "shade stuck")
    assert "Shaded" not in calm


def test_a_counter_that_hardly_changes_is_told_and_not_drawn() -> None:
    counters = {
        "free pages": [(0.0, 4096.0), (1.0, 4000.0)],
        "held": [(0.0, 0.0), (1.0, 3.0)],
        "most": [(0.0, 7.0)],
    }
    drawn = timeline(Recording(counters=counters), 10)
    assert "Not drawn because it hardly changes: free pages (4,000 to 4,096), most (7)." in drawn
    assert re.findall(r'data-of="(.*?)"', drawn) == ["held"]
    assert "<h3>Pages" not in drawn


def test_counters_have_their_unit() -> None:
    drawn = timeline(deadlock(), 10)
    units = dict(re.findall(r"data-of='(.*?)' data-unit='(.*?)'", drawn))
    assert units == dict.fromkeys(("held", "emergency", "free in slabs"), "objects") | {"free pages": "pages"}


def test_big_run_is_drawn_in_part_and_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_timeline, "MOST_SPANS", 300)
    tasks = [
        Span(f"task-{number}", kind, start, start + 0.25 + number / 10_000)
        for number in range(1_000)
        for start in range(5)
        for kind in ("waiting", "holding")
    ]
    recording = Recording(
        tasks=tasks,
        caches=[Span(f"cache-{number}", "GROWING", 0, 1) for number in range(100)],
        moments=[Moment("plan", number / 1000, "kick") for number in range(1_000)],
        counters={f"count {number}": [(i / 500, i % 7) for i in range(5_000)] for number in range(15)},
    )
    drawn = timeline(recording, 10)
    names = [
        name for name in re.findall(r'<span class=row style="[^"]*">([^<]*)<', drawn) if name.startswith("task-")
    ]
    assert names == [f"task-{number}" for number in range(940, 1000)]
    assert len(rects(drawn, "bar")) == 300
    assert len(re.findall(r">cache-\d+<", drawn)) == 20
    curves = re.findall(r'<path class=step data-of="count \d+" d="(.*?)"', drawn)
    assert len(curves) == 12
    assert all(curve.count("H") <= 1_501 for curve in curves)
    page = page_of(tmp_path, replace(RESULT, stuck=("w waits",) * 1_000), recording)
    assert "60 of 1,000 tasks shown: those that waited longest." in page
    assert "300 of 620 spans of these rows shown: the longest." in page
    assert "500 of 1,000 moments shown" in page
    assert "12 of 15 counters shown" in page
    assert re.search(r"1,\d\d\d of 5,000 points", page)
    assert page.count("<li>w waits") == MOST_STUCK
    assert "And 800 more." in page
    assert f"The first {MOST_LISTED} of 1,000." in page


def test_rows_shown_are_those_that_waited_longest_in_their_own_order() -> None:
    spans = [
        Span(row, "waiting", start, start + length)
        for start, (row, length) in enumerate(zip("abcd", (1, 5, 2, 9), strict=True))
    ]
    spans.append(Span("a", "holding", 0, 100))
    assert list(waiting_longest(by_row(spans), 2)) == ["b", "d"]


points = st.lists(st.tuples(st.floats(0, 100), st.floats()), max_size=200).map(sorted)


@given(points, st.integers(1, 20).map(lambda number: 3 * number))
def test_thinned_counter_keeps_its_ends_its_least_and_its_greatest(
    given_points: list[tuple[float, float]], most: int
) -> None:
    finite = [point for point in given_points if abs(point[1]) < float("inf")]
    kept = thinned(given_points, most)
    assert len(kept) <= most
    assert [point for point in finite if point in kept] == kept or len(set(finite)) < len(finite)
    if finite:
        values = [value for _, value in kept]
        assert (min(values), max(values)) == (min(v for _, v in finite), max(v for _, v in finite))
        assert kept[-1] == finite[-1]


def test_thinned_counter_keeps_the_value_that_stands_through_a_quiet_time() -> None:
    busy = [(number / 1000, float(number % 10)) for number in range(1000)]
    kept = thinned([*busy, (1.0, 5.0), (100.0, 0.0)], 9)
    assert (1.0, 5.0) in kept


@given(st.lists(st.floats(0, 1e6)))
def test_histogram_counts_every_wait_between_its_edges(seconds: list[float]) -> None:
    edges, counts = histogram(seconds)
    assert sum(counts) == len(seconds)
    if seconds:
        assert len(edges) == len(counts) + 1
        for low, high, count in zip(edges[1:-1], edges[2:], counts[1:], strict=True):
            assert count == sum(low <= wait < high for wait in seconds)
        assert counts[-1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (3e-7, "0.3 µs"), (0.00333333, "3.33 ms"), (0.99999, "1 s"), (1.5, "1.5 s"), (86400, "86,400 s")],
)
def test_times_are_told_in_a_unit_that_fits(seconds: float, text: str) -> None:
    assert lasting(seconds) == text


@pytest.mark.parametrize(
    ("top", "count", "whole", "found"),
    [
        (7.54, 8, False, 7),
        (0, 4, False, 0),
        (1, 4, True, 1),
        (3, 3, True, 3),
        (0.003, 8, False, 0.003),
        (61_000, 4, True, 60_000),
    ],
)
def test_numbers_beside_a_chart_are_round(top: float, count: int, whole: bool, found: float) -> None:
    values = nice(top, count, whole=whole)
    assert values[0] == 0
    assert values[-1] == pytest.approx(found)
    assert len(values) <= count + 1


def test_long_names_lose_their_middle_and_all_are_text() -> None:
    assert plain("connection-handler-17", 11) == "conne…er-17"
    assert plain("a\nb<c>", 11) == "a b&lt;c&gt;"


def test_the_biggest_page_is_less_than_1_5_mb(tmp_path: Path) -> None:
    name = "a name of many letters, as long as they are shown, " * 2
    tasks = [
        Span(f"{name}{number % 60}", "holding", start / 997, start / 997 + 1 / 3, name)
        for number in range(120)
        for start in range(100)
    ]
    moments = [Moment(f"{name}{number % 60}", number / 997, name) for number in range(1_000)]
    counters = {
        f"{number} {name}": [(i / 997, float(i * 7919 % 10_007)) for i in range(9_000)] for number in range(20)
    }
    recording = Recording(tasks=tasks, moments=moments, counters=counters, waits=[1 / 3] * 1_000)
    result = replace(RESULT, stuck=(name * 3,) * 1_000)
    assert len(page_of(tmp_path, result, recording).encode()) < 1_500_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium found")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, RESULT, deadlock())
    return path.as_uri()


def visit(browser: Browser, address: str, **options: Any) -> tuple[Page, list[str]]:
    """The page, and whatever it asked for or complained about."""
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("dialog", lambda dialog: seen.append(dialog.message))
    page.goto(address)
    return page, seen


FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
TOO_WIDE = (
    "[...document.querySelectorAll('section, header')].filter((one) => one.scrollWidth > one.clientWidth).length"
)
BOX = "one.getAttribute('viewBox').split(' ').map(Number)"
SHOWN = f"[...document.querySelectorAll('#timeline svg')].map((one) => {BOX})"


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1300, "light")])
def test_page_fits_fetches_nothing_and_complains_about_nothing(
    browser: Browser, address: str, width: int, scheme: Any
) -> None:
    page, seen = visit(browser, address, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate(FITS)
    assert not page.evaluate(TOO_WIDE)
    assert page.locator("#verdict").is_visible()
    assert page.locator("#verdict").inner_text() == "Failed: 1 of 2 expectations broken"
    assert page.locator("h1").inner_text() == RESULT.scenario
    background = page.evaluate("getComputedStyle(document.querySelector('section')).backgroundColor")
    assert background == ("rgb(28, 32, 36)" if scheme == "dark" else "rgb(255, 255, 255)")
    label = page.locator("#timeline .row:not(.head)").first.inner_text()
    assert len(label) == (12 if width == 400 else 26)
    page.wait_for_load_state("networkidle")
    assert seen == [address]
    page.close()


def test_charts_have_the_numbers_of_the_run(browser: Browser, address: str) -> None:
    page, _ = visit(browser, address)
    assert page.locator("#timeline .bar rect").count() == 12 + 72 + 12 + 3 + 2
    assert page.locator("#waits .bar rect").count() == 5
    held = page.locator('[data-of="held"].step').get_attribute("d") or ""
    assert [int(value) for value in re.findall(r"V(\d+)", held)] == [3, 6, 9, 1, 7, 5, 5]
    page.close()


def test_the_pointer_is_told_what_is_under_it_and_the_value_of_every_curve(browser: Browser, address: str) -> None:
    page, _ = visit(browser, address, viewport={"width": 1300, "height": 1000})
    rows, objects = page.locator("#timeline .plot").first, page.locator("#timeline .plot").nth(1)
    objects.scroll_into_view_if_needed()
    box = objects.bounding_box()
    assert box
    page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 5)
    values = page.locator("#timeline output").all_inner_texts()
    assert values == ["1 objects", "4 objects", "8 objects", "3,696 pages"]
    assert page.locator(".tip").inner_text() == "no slab arrives for 3 s"
    assert page.locator("#timeline .cursor").count() == page.locator("#timeline .plot").count()
    page.locator("#timeline .bar rect").first.hover()
    assert "waiting" in page.locator(".tip").inner_text()
    page.mouse.move(0, 0)
    assert page.locator(".tip").is_hidden()
    assert page.locator("#timeline output").all_inner_texts() == [""] * 4
    assert rows.locator(".cursor").is_hidden()
    page.close()


def test_dragging_zooms_every_area_and_a_double_click_goes_back(browser: Browser, address: str) -> None:
    page, _ = visit(browser, address, viewport={"width": 1300, "height": 900})
    area = page.locator("#timeline .plot").nth(1)
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box
    assert [(start, length) for start, _, length, _ in page.evaluate(SHOWN)] == [(0, 10)] * 3
    x, y = box["x"], box["y"] + box["height"] / 2
    page.mouse.move(x + 0.3 * box["width"], y)
    page.mouse.down()
    page.mouse.move(x + 0.6 * box["width"], y, steps=4)
    page.mouse.up()
    for start, _, length, _ in page.evaluate(SHOWN):
        assert (start, length) == pytest.approx((3, 3), abs=0.05)
    assert page.locator("#timeline .times").first.locator("span").all_inner_texts()[-1] == "6 s"
    page.mouse.dblclick(x + 0.5 * box["width"], y)
    assert [(start, length) for start, _, length, _ in page.evaluate(SHOWN)] == [(0, 10)] * 3
    page.close()


def test_page_follows_the_screen_as_it_changes(browser: Browser, address: str) -> None:
    page, seen = visit(browser, address, viewport={"width": 1300, "height": 800}, color_scheme="light")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate(FITS)
    colour = page.evaluate("getComputedStyle(document.body).color")
    assert colour == "rgb(228, 231, 234)"
    assert seen == [address]
    page.close()


def test_without_javascript_all_is_there_but_the_zoom(browser: Browser, address: str) -> None:
    page, seen = visit(browser, address, viewport={"width": 400, "height": 800}, java_script_enabled=False)
    assert page.locator("#timeline .plot").first.is_visible()
    assert page.locator("#timeline .times").first.inner_text().startswith("0 s")
    assert page.locator("#timeline .tools").is_hidden()
    assert page.get_by_text("3.150000 writer-4 waits").is_visible()
    assert page.get_by_text("8,388,608").is_visible()
    assert seen == [address]
    page.close()
