"""How fast is the lab? Simulated allocations per second of processor time; do long runs cost more per event?"""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any

import typer

from ..cli._loops import Loop
from ._app import command
from ._measured import Bench, Quantity, Turn, Values

SIZES = (10_000, 100_000, 1_000_000)
LONG = SIZES[-1]
"""From so many events on, one round is enough."""
EVENTS_A_SECOND = 1500  # of the scenario below: 50 tasks, 10 rounds per second each, 3 events per round
TRIAL = 10_000
LOOPS = (Loop.ASYNCIO, Loop.TRIO)
EVENT = Quantity("an event", "us")
ALLOCATIONS = Quantity("allocations", "1/s", more_is_better=True)
SIMULATED = Quantity("simulated time", "s/s", more_is_better=True)
DEADLOCK = "deadlock-recovers"


@command("lab", rounds=3, quick={"rounds": 2, "most": 10_000})
def lab(
    most: Annotated[int, typer.Option(help="Events in the longest run.", min=1000)] = SIZES[-1],
) -> Bench:
    """Simulated allocations per second of processor time, for runs of three lengths, on each loop."""
    sizes = [size for size in SIZES if size < most] + [most]
    turns = [
        Turn(
            f"{size:,} events",
            "aslab.lab",
            partial(_busy, loop, size),
            loop.value,
            rounds=1 if size >= LONG else None,
        )
        for size in sizes
        for loop in LOOPS
    ]
    turns += [Turn(DEADLOCK, "aslab.lab", partial(_deadlock, loop), loop.value) for loop in LOOPS]

    def foretell(rounds: int) -> str:
        return _foretold(sum(size * (1 if size >= LONG else rounds) for size in sizes))

    note = f"50 tasks that allocate, hold for 50 ms and pause for 50 ms; and the scenario {DEADLOCK}."
    return Bench("the lab", turns, note, foretell=foretell)


def _foretold(events: int) -> str:
    """How long that many events will take on all loops, after a short run on each."""
    trial = min(TRIAL, events)
    seconds = sum(min(_busy(loop, trial)[EVENT] for _ in range(2)) for loop in LOOPS) * events / 1e6
    about = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{max(1, seconds):.0f} s"
    return f"this takes about {about} on this machine; --most makes it shorter"


def _busy(loop: Loop, events: int) -> Values:
    from ..lab.scenarios import check

    return _play(
        check(
            {
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
        ),
        loop,
    )


def _deadlock(loop: Loop) -> Values:
    from ..lab.scenarios import builtin, load

    return _play(load(builtin()[DEADLOCK]), loop)


def _play(scenario: Any, loop: Loop) -> Values:
    from ..lab.scenarios import play

    begin = time.process_time()
    result = play(scenario, loop=loop.value).result
    seconds = time.process_time() - begin
    return {
        EVENT: seconds / result.events * 1e6,
        ALLOCATIONS: result.figures["allocations"] / seconds,
        SIMULATED: result.duration / seconds,
    }
