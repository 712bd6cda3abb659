"""``aslab top``, live. Needs the extra ``top``: Textual."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Static

from .._errors import BadInput, escaped
from ._rows import Order, cells, heading, holders_of, rows_of, sparkline
from ._text import LATE, LEFT, SPARK, fitting, holders_table

WIDTH = 10
"""Snapshots in a sparkline."""
TITLES = {
    Order.ACTIVE: "active",
    Order.PER_SLAB: "per slab",
    Order.MEMORY: "memory",
    Order.SLABS: "slabs",
    Order.NAME: "name",
    Order.OBJECTS: "objects",
    Order.SIZE: "size",
    Order.USE: "use",
    Order.ACTIVE_SLABS: "active slabs",
    Order.WAIT: "wait",
}
KEYS = Text.assemble(
    *(("q", "bold"), " quit, ", ("space", "bold"), " now; sort by "),
    Text(", ").join(Text.assemble((order.value, "bold"), f" {title}") for order, title in TITLES.items()),
)
"""The keys and what they do: wrapped to the width of the screen, where a Footer shows as many as fit."""


class Top(App[None]):
    """The screen: a heading, and one row for each cache, red where growth is late.

    :param ask: returns a snapshot; called in a thread
    :param delay: seconds between two snapshots
    :param first: the snapshot to begin with
    """

    CSS = (
        "#heading { height: auto; max-height: 40%; padding: 0 0 1 0; } "
        "#holders { height: auto; max-height: 30%; } #keys { height: auto; } "
        "DataTable { height: 1fr; min-height: 3; scrollbar-size-vertical: 1; }"
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", "quit", priority=True),
        Binding("space", "look", "now"),
        *(Binding(order.value, f"sort('{order.value}')", title) for order, title in TITLES.items()),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(
        self, ask: Callable[[], dict[str, Any]], delay: float, order: Order, first: dict[str, Any]
    ) -> None:
        super().__init__()
        self._ask = ask
        self._delay = delay
        self._snapshot = first
        self._lost = ""
        self._active: dict[str, deque[int]] = {}
        self.order: Order = order
        """What the rows are sorted by."""

    def compose(self) -> ComposeResult:
        """Give the parts of the screen, from the top."""
        yield Static(id="heading")
        yield DataTable(cursor_type="none", zebra_stripes=True, cell_padding=0)
        yield Static(id="holders")
        yield Static(KEYS, id="keys")

    def on_mount(self) -> None:
        """Show the first snapshot, and begin to ask for more."""
        self._show(self._snapshot)
        self.set_interval(self._delay, self.action_look)

    def on_resize(self) -> None:
        """Show the columns that fit now."""
        if self._active:  # else there is nothing to fit, or no snapshot has been shown yet
            self.call_later(self._draw)  # `size` is the new one by then

    def action_sort(self, letter: str) -> None:
        """Sort by another column."""
        self.order = Order(letter)
        self._draw()

    def action_look(self) -> None:
        """Ask for a snapshot now."""
        self.run_worker(self._look, thread=True, exclusive=True)

    def _look(self) -> None:
        try:
            snapshot = self._ask()
        except BadInput as exc:
            self.call_from_thread(self._lose, str(exc))
        else:
            self.call_from_thread(self._show, snapshot)

    def _lose(self, why: str) -> None:
        self._lost = why
        self._draw()

    def _show(self, snapshot: dict[str, Any]) -> None:
        self._snapshot, self._lost = snapshot, ""
        before, self._active = self._active, {}
        for cache in snapshot["stats"]["caches"]:
            name = escaped(cache["name"])
            lately = self._active[name] = before.get(name, deque(maxlen=WIDTH))
            lately.append(cache["obj_held"])
        self._draw()

    def _draw(self) -> None:
        lines = heading(self._snapshot)
        if self._lost:
            lines.append(f"no answer any more, these are the last figures: {self._lost}")
        style = {"ok": "green", "degraded": "yellow", "stuck": LATE}.get(self._snapshot["health"]["state"], "")
        first, *others = lines
        text = Text.assemble((first, style), *(f"\n{line}" for line in others))
        self.query_one("#heading", Static).update(text)
        table = self.query_one(DataTable)
        table.clear(columns=True)
        rows = rows_of(self._snapshot, self.order)
        texts = [cells(row) | {SPARK: sparkline(self._active[row.name]).ljust(WIDTH)} for row in rows]
        columns = fitting(texts, self.size.width - 1) if rows else {"NO CACHES": 9}  # 1 for a bar to scroll by
        for name, width in columns.items():
            table.add_column(_cell(name, name, width), key=name)
        for row, found in zip(rows, texts, strict=True):
            style = LATE if row.late_for is not None else ""
            shown = (_cell(name, found[name], width, style) for name, width in columns.items())
            table.add_row(*shown, key=row.name)
        holders = holders_of(self._snapshot)
        self.query_one("#holders", Static).update(holders_table(holders) if holders else "")


def _cell(column: str, text: str, width: int, style: str = "") -> Text:
    """No wider than its column, and one space apart from the next."""
    cell = Text(text, style)
    cell.truncate(width, overflow="ellipsis")
    cell.align("left" if column in (*LEFT, SPARK) else "right", width)
    return cell.append(" ")
