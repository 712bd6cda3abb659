"""How fast is the lab? Simulated allocations per second of wall time; do long runs cost more per event?"""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from ..cli._progress import bar
from ._app import app, show

SIZES = (10_000, 100_000, 1_000_000)
EVENTS_A_SECOND = 1500  # of the scenario below: 50 tasks, 10 rounds per second each, 3 events per round
TRIAL = 10_000
LOOPS = ("asyncio", "trio")


@app.command(name="lab")
def lab(
    most: Annotated[int, typer.Option(help="Events in the longest run.", min=1000)] = SIZES[-1],
    rounds: Annotated[int, typer.Option(help="Rounds of the two shorter runs; the best counts.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Simulated allocations per second of wall time, for runs of three lengths, on each loop."""
    rows = []
    sizes = [size for size in SIZES if size < most] + [most]
    _foretell(sum(size * (rounds if size < sizes[-1] else 1) for size in sizes))
    with bar() as shown:
        task = shown.add_task("aslab bench lab", total=None)
        for size in sizes:
            for loop in LOOPS:
                shown.update(task, description=f"{loop}, {size:,} events")
                turns = range(rounds if size < sizes[-1] else 1)
                rows.append(min((_measure(loop, size) for _ in turns), key=lambda row: row["us an event"]))
        for loop in LOOPS:
            shown.update(task, description=f"{loop}, the deadlock scenario")
            best = min((_deadlock(loop) for _ in range(rounds)), key=lambda row: row["us an event"])
            rows.append(best)
    note = (
        "50 tasks that allocate, hold for 50 ms and pause for 50 ms; below: examples/scenarios/deadlock-recovers."
    )
    show("the lab", rows, note, as_json=as_json)


def _foretell(events: int) -> None:
    """Say on stderr how long that many events will take on all loops, after a short run on each."""
    trial = min(TRIAL, events)
    seconds = sum(min(_measure(loop, trial)["us an event"] for _ in range(2)) for loop in LOOPS) * events / 1e6
    about = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{max(1, seconds):.0f} s"
    print(f"aslab: this takes about {about} on this machine; --most makes it shorter", file=sys.stderr, flush=True)


def _measure(loop: str, events: int) -> dict[str, Any]:
    from ..lab.scenarios import check

    busy = {
        "name": "busy",
        "about": "Tasks that allocate and free.",
        "duration": f"{events / EVENTS_A_SECOND:.3f}s",
        "backends": {"slabs": {"kind": "vmalloc"}, "single": {"kind": "kmalloc"}},
        "allocator": {"slabs": "slabs", "emergency": "single"},
        "caches": {"io": {"size": "4KiB"}},
        "tasks": {
            "busy": {"cache": "io", "count": 50, "arrival": {"mean": "50ms"}, "hold": {"mean": "50ms"}},
        },
        "expect": [{"what": "memory_lost", "at_most": 0}],
    }
    return _row("busy", check(busy), loop)


def _deadlock(loop: str) -> dict[str, Any]:
    from ..lab.scenarios import builtin, load

    return _row("deadlock-recovers", load(builtin()["deadlock-recovers"]), loop)


def _row(name: str, scenario: Any, loop: str) -> dict[str, Any]:
    from ..lab.scenarios import play

    begin = time.perf_counter()
    result = play(scenario, loop=loop).result
    wall = time.perf_counter() - begin
    return {
        "scenario": name,
        "loop": loop,
        "events": result.events,
        "allocations": int(result.figures["allocations"]),
        "allocations/s": result.figures["allocations"] / wall,
        "us an event": wall / result.events * 1e6,
        "simulated s/s": result.duration / wall,
    }
