"""The report of a run: what stands on it, that it stays small, and that a browser shows it without the network."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import plotly.graph_objects  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aslab.lab import _timeline
from aslab.lab._bounds import histogram, thinned, waiting_longest
from aslab.lab._figures import COLOURS, lasting, plain, waits
from aslab.lab._recording import Kind, Moment, Recording, Span
from aslab.lab._report import MOST_LISTED, MOST_STUCK, write_report
from aslab.lab._result import Result, Verdict
from aslab.lab._rows import by_row
from aslab.lab._timeline import timeline

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
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
    """The page without Plotly's own script."""
    write_report(path / "report.html", result, recording or deadlock())
    before, _, after = (path / "report.html").read_text(encoding="utf-8").partition("</main>")
    return before + after[after.index('<script type="application/json"') :]


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
    assert "Nobody had to wait." in page
    assert "stuck</h2>" not in page
    page = page_of(tmp_path, replace(result, verdicts=RESULT.verdicts[1:]), Recording())
    assert "Passed: every expectation holds" in page


def test_nothing_given_is_taken_for_html(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "<script>alert" not in page
    assert page.count("</title>") == 1
    data = page[page.index("application/json") :]
    assert "<" not in data[: data.index("</script>")]
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;") >= 8


def test_nothing_given_is_taken_for_html_by_plotly() -> None:
    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)):
            for part in value.values() if isinstance(value, dict) else value:
                yield from strings(part)

    recording = deadlock()
    recording.counters[EVIL] = [(0, 1)]
    figure = timeline(recording, 10)
    texts = [*strings(figure.data), *strings(figure.wide), *strings(figure.narrow), *strings(figure.layout)]
    assert any("alert" in text for text in texts)
    allowed = re.compile(r"<(/?b|br|extra|/extra)>")
    assert not [text for text in texts if "<" in allowed.sub("", text)]


def test_same_run_same_bytes(tmp_path: Path) -> None:
    write_report(tmp_path / "1", RESULT, deadlock())
    write_report(tmp_path / "2", RESULT, deadlock())
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_errors_of_writing_are_the_callers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "missing" / "report.html", RESULT, deadlock())


def test_plotly_knows_every_property_of_the_plots() -> None:
    for figure in (timeline(deadlock(), 10), waits(deadlock()), timeline(Recording(), 0)):
        layout = dict(figure.layout)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = plotly.graph_objects.Figure(data=figure.data, layout=layout)
            made.update_layout({key.replace(".", "_"): value for key, value in figure.wide.items()})


def test_every_kind_has_a_colour() -> None:
    assert set(get_args(Kind)) <= COLOURS.keys()


def test_what_a_task_does_at_once_is_drawn_beside_and_not_over_each_other() -> None:
    spans = [Span("w", "holding", 0, 4), Span("w", "holding", 1, 2), Span("v", "holding", 2, 3)]
    (bars,) = timeline(Recording(tasks=spans), 4).data
    (first, second, alone), (height, same, whole) = bars["y"], bars["width"]
    assert height == same
    assert first + height / 2 <= second - height / 2 + 1e-3
    assert (round(first + second, 3), alone) == (2, 2)  # on either side of row 1; in the middle of row 2
    assert whole == 2 * height


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
    figure = timeline(recording, 10)
    names = [name for name in figure.wide["yaxis.ticktext"] if name.startswith("task-")]
    assert names == [f"task-{number}" for number in range(940, 1000)]
    bars = [trace for trace in figure.data if trace["type"] == "bar"]
    assert sum(len(trace["x"]) for trace in bars) == 300
    assert sum(name.startswith("cache-") for name in figure.wide["yaxis.ticktext"]) == 20
    lines = [trace for trace in figure.data if trace.get("mode") == "lines"]
    assert len(lines) == 12
    assert all(len(trace["x"]) <= 2_001 for trace in lines)
    page = page_of(tmp_path, replace(RESULT, stuck=("w waits",) * 1_000), recording)
    assert "60 of 1,000 tasks shown: those that waited longest." in page
    assert "300 of 620 spans of these rows shown: the longest." in page
    assert "500 of 1,000 moments shown" in page
    assert "12 of 15 counters shown" in page
    assert "2,000 of 5,000 points" in page or re.search(r"1,\d\d\d of 5,000 points", page)
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


def test_long_names_lose_their_middle_and_all_are_text() -> None:
    assert plain("connection-handler-17", 11) == "conne…er-17"
    assert plain("a\nb<c>", 11) == "a b&lt;c&gt;"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium found")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, RESULT, deadlock())
    return path.as_uri()


def visit(browser: Browser, address: str, **options: Any) -> tuple[Page, list[str]]:
    """The page with its plots drawn, and whatever it asked for or complained about."""
    page = browser.new_page(**options)
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("dialog", lambda dialog: seen.append(dialog.message))
    page.goto(address)
    if options.get("java_script_enabled", True):
        for plot in ("#timeline", "#waits"):
            page.locator(f"{plot} .bars path").first.wait_for(state="attached")
    return page, seen


def until(page: Page, condition: str) -> None:
    """Wait; Playwright's own way of it is evaluated in the page, which the page does not allow."""
    look = f"const look = () => ({condition}) ? done() : requestAnimationFrame(look); look();"
    late = "setTimeout(() => fail(new Error('it did not come to that')), 10_000);"
    page.evaluate(f"new Promise((done, fail) => {{ {late} {look} }})")


WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1200, "light")])
def test_page_fits_fetches_nothing_and_complains_about_nothing(
    browser: Browser, address: str, width: int, scheme: Any
) -> None:
    page, seen = visit(browser, address, viewport={"width": width, "height": 800}, color_scheme=scheme)
    scroll, client = page.evaluate(WIDTHS)
    assert scroll <= client
    assert page.locator("#verdict").is_visible()
    assert page.locator("#verdict").inner_text() == "Failed: 1 of 2 expectations broken"
    assert page.locator("h1").inner_text() == RESULT.scenario
    colour = page.evaluate("document.getElementById('timeline').layout.font.color")
    assert (int(colour[1:3], 16) > 127) == (scheme == "dark")
    label = page.evaluate("document.querySelector('#timeline .ytick:nth-child(2) text').textContent")
    assert len(label) == (12 if width == 400 else 26)
    assert not page.evaluate(
        "[...document.querySelectorAll('.plot')].filter((div) => div.scrollWidth > div.clientWidth)"
    )
    page.wait_for_load_state("networkidle")
    assert seen == [address]
    page.close()


def test_plots_have_the_numbers_of_the_run(browser: Browser, address: str) -> None:
    page, _ = visit(browser, address)
    drawn = page.evaluate(
        "document.getElementById('timeline').calcdata.map((points) => [points[0].trace.name, points.length])"
    )
    assert dict(map(tuple, drawn[:5])) == {"waiting": 12, "holding": 72, "emergency": 12, "growing": 1, "stuck": 1}
    assert page.locator("#timeline .bars path").count() == 12 + 72 + 12 + 3 + 2
    assert page.evaluate("document.getElementById('waits').calcdata[0].map((bar) => bar.s)") == [1, 1, 3, 3, 4]
    held = page.evaluate("document.getElementById('timeline').data.find((trace) => trace.name == 'held').y")
    assert held == [0, 3, 6, 9, 1, 7, 5, 5]
    page.close()


def test_dragging_zooms_every_time_axis_and_a_double_click_goes_back(browser: Browser, address: str) -> None:
    page, _ = visit(browser, address, viewport={"width": 1200, "height": 900})
    ranges = "(({xaxis, xaxis2}) => [xaxis.range, xaxis2.range])(document.getElementById('timeline').layout)"
    area = page.locator("#timeline .nsewdrag[data-subplot=xy]")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box
    assert page.evaluate(ranges) == [[0, 10], [0, 10]]
    x, y = box["x"], box["y"] + box["height"] / 2
    page.mouse.move(x + 0.3 * box["width"], y)
    page.mouse.down()
    page.mouse.move(x + 0.6 * box["width"], y, steps=4)
    page.mouse.up()
    until(page, "document.getElementById('timeline').layout.xaxis.range[0] > 0")
    upper, lower = page.evaluate(ranges)
    assert upper == lower == pytest.approx([3, 6], abs=0.05)
    page.mouse.dblclick(x + 0.5 * box["width"], y)
    until(page, "document.getElementById('timeline').layout.xaxis.range[0] == 0")
    assert page.evaluate(ranges) == [[0, 10], [0, 10]]
    page.close()


def test_page_follows_the_screen_as_it_changes(browser: Browser, address: str) -> None:
    page, seen = visit(browser, address, viewport={"width": 1200, "height": 800}, color_scheme="light")
    page.emulate_media(color_scheme="dark")
    until(page, "document.getElementById('timeline').layout.font.color == '#c9d0d6'")
    page.set_viewport_size({"width": 400, "height": 800})
    until(page, "document.getElementById('timeline')._fullLayout.width < 400")
    scroll, client = page.evaluate(WIDTHS)
    assert scroll <= client
    assert seen == [address]
    page.close()


def test_without_javascript_the_tables_are_there_and_the_plots_are_excused(browser: Browser, address: str) -> None:
    page, seen = visit(browser, address, viewport={"width": 400, "height": 800}, java_script_enabled=False)
    for plot in ("#timeline", "#waits"):
        assert page.locator(plot).inner_text() == "The plot needs JavaScript."
    assert page.get_by_text("3.150000 writer-4 waits").is_visible()
    assert page.get_by_text("8,388,608").is_visible()
    assert seen == [address]
    page.close()
