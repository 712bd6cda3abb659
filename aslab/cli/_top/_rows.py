"""One row for each cache, and the orders that slabtop has."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..._checks import format_size
from .._errors import escaped

BARS = " ▁▂▃▄▅▆▇█"
HOLDERS = 5
"""Holders that are shown."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is shown of one cache."""

    name: str
    objects: int
    """All, in slabs and as emergency objects."""
    active: int
    """Held by callers."""
    size: int
    slabs: int
    active_slabs: int
    per_slab: int
    nbytes: int
    """Bytes of its slabs and emergency objects."""
    emergency: int
    waiting: int
    oldest: float
    """Seconds that the oldest waiting caller has waited."""
    late_for: float | None
    """Seconds since growth is late; None if it is not."""
    note: str
    """What is going on, in a word or two; for how long, `heading` says."""

    @property
    def use(self) -> float:
        """The share of its objects that callers hold."""
        return self.active / self.objects if self.objects else 0.0


class Order(enum.StrEnum):
    """What to sort by, by slabtop's letters, and ``w`` for what slabtop has not."""

    ACTIVE = "a"
    PER_SLAB = "b"
    MEMORY = "c"
    SLABS = "l"
    NAME = "n"
    OBJECTS = "o"
    SIZE = "s"
    USE = "u"
    ACTIVE_SLABS = "v"
    WAIT = "w"


KEYS: dict[Order, Callable[[Row], float | int]] = {
    Order.ACTIVE: lambda row: row.active,
    Order.PER_SLAB: lambda row: row.per_slab,
    Order.MEMORY: lambda row: row.nbytes,
    Order.SLABS: lambda row: row.slabs,
    Order.OBJECTS: lambda row: row.objects,
    Order.SIZE: lambda row: row.size,
    Order.USE: lambda row: row.use,
    Order.ACTIVE_SLABS: lambda row: row.active_slabs,
    Order.WAIT: lambda row: row.oldest,
}


def rows_of(snapshot: dict[str, Any], order: Order) -> list[Row]:
    """Return the rows, the largest first; by name, from the first letter on."""
    rows = [_row(cache) for cache in snapshot["stats"]["caches"]]
    rows.sort(key=lambda row: row.name)
    if order is not Order.NAME:
        rows.sort(key=KEYS[order], reverse=True)
    return rows


def _row(cache: dict[str, Any]) -> Row:
    return Row(
        name=escaped(cache["name"]),
        objects=cache["obj_total"],
        active=cache["obj_held"],
        size=cache["size"],
        slabs=cache["slab_total"],
        active_slabs=cache["slab_alloc"],
        per_slab=(cache["obj_total"] - cache["obj_emergency"]) // max(1, cache["slab_total"]),
        nbytes=cache["slab_total"] * cache["slab_size"] + cache["emergency_bytes"],
        emergency=cache["obj_emergency"],
        waiting=cache["waiters"],
        oldest=cache["oldest_wait"],
        late_for=cache["growth_late_for"] if cache["growth_late"] else None,
        note=_note(cache),
    )


def _note(cache: dict[str, Any]) -> str:
    if cache["growth_late"]:
        return "DEADLOCKED"
    if cache["growth_failing"]:
        return "grows fail"
    if cache["waiters"] and cache["at_limit"]:
        return "at limit"
    return "growing" if cache["growing"] else ""


def heading(snapshot: dict[str, Any]) -> list[str]:
    """The lines above the table: the process, its health, and all its memory."""
    stats, health = snapshot["stats"], snapshot["health"]

    def memory(kind: str) -> str:
        nbytes, limit = stats[f"{kind}_bytes"], stats["limit" if kind == "slab" else "emergency_limit"]
        return format_size(nbytes) + ("" if limit is None else f" of {format_size(limit)}")

    kicked = f", {stats['kicked']} stuck grows set aside" if stats["kicked"] else ""
    lines = [
        f"process {snapshot['pid']} is {health['state']}",
        f"slabs {memory('slab')}, emergency objects {memory('emergency')}{kicked}",
        *(f"- {reason}" for reason in health["reasons"]),
        *(f"- fault on: {fault}" for fault in stats.get("faults", ())),
    ]
    return [escaped(line) for line in lines]


def holders_of(snapshot: dict[str, Any]) -> list[dict[str, str]]:
    """Who has held a buffer for longest, as far as it was noted: as text, by the headings of the columns."""
    return [
        {
            "HELD": seconds(holder["seconds"]),
            "CACHE": escaped(holder["cache"]),
            "BY": escaped(holder["task"]),
            "ALLOCATED AT": escaped(holder["place"]),
        }
        for holder in snapshot.get("holders", ())[:HOLDERS]
    ]


def cells(row: Row) -> dict[str, str]:
    """The row as text, by the headings of the columns."""
    return {
        "NAME": row.name,
        "OBJS": f"{row.objects}",
        "ACTIVE": f"{row.active}",
        "USE": f"{row.use:.0%}",
        "SIZE": format_size(row.size),
        "SLABS": f"{row.slabs}",
        "MEMORY": format_size(row.nbytes),
        "EMERG": f"{row.emergency}",
        "WAIT": f"{row.waiting}",
        "OLDEST": seconds(row.oldest) if row.waiting else "",
        "STATE": row.note,
    }


def seconds(duration: float) -> str:
    """A duration in at most five characters."""
    if duration < 1:
        return f"{duration * 1000:.0f}ms"
    if duration < 60:
        return f"{duration:.1f}s"
    return f"{duration / 60:.0f}m" if duration < 3600 else f"{duration / 3600:.0f}h"


def sparkline(values: Sequence[float]) -> str:
    """The values as bars, from 0 to the largest of them; what is not 0 has a bar."""
    most = max(values, default=0)
    return "".join(BARS[math.ceil(8 * value / most) if most else 0] for value in values)
