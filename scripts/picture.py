"""The picture of the README, drawn from a run of six seconds: docs/figures/stuck.svg.

    python scripts/picture.py [OUT.svg]

Two services answer the requests of 16 clients, each of which holds a buffer for some 20 ms. From the first second
to the fourth, whoever asks the system for memory gets stuck; just then requests begin to need 2 MiB each, where
they needed 1, so that what a pool already has is of no use. One service has a fresh buffer for each request, made
on the event loop as `bytearray(n)` is; the other has a cache of aslab's for each size, on the same system.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aslab
from aslab.backends import Mmap
from aslab.faults import Switch

OUT = Path(__file__).resolve().parent.parent / "docs" / "figures" / "stuck.svg"
CLIENTS = 16
SIZES = 2**20, 2**21
HOLD = (0.01, 0.03)
LENGTH, STUCK, WELL = 6.0, 1.0, 4.0
STEP = 0.1
"""Seconds: that a buffer is held, of the run, of the fault's start and end, and between points of the picture."""

Request = Callable[[int], Awaitable[None]]


async def clients(request: Request, at_stuck: Callable[[], None], at_well: Callable[[], None]) -> list[float]:
    """When each request was answered, in seconds from the start."""
    answered: list[float] = []
    size, larger = SIZES
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def client() -> None:
        while loop.time() - start < LENGTH:
            await request(size)
            answered.append(loop.time() - start)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CLIENTS):
            tasks.create_task(client())
        await asyncio.sleep(STUCK)
        at_stuck()
        size = larger
        loop.call_at(start + WELL, at_well)
    return answered


async def with_aslab() -> list[float]:
    """Each request leases a buffer."""
    system = Switch(Mmap())
    async with aslab.open_allocator(slabs=system) as kmem:
        caches = {size: kmem.create_cache(f"frames-{size}", size, objects_per_slab=8) for size in SIZES}
        for cache in caches.values():
            for _ in range(4):  # a service that has run for a while knows how long a grow takes
                await cache.prefill(8)
                await cache.reap()

        async def request(size: int) -> None:
            async with caches[size].lease() as frame:
                frame.view[::4096] = bytes(size // 4096)
                await asyncio.sleep(random.uniform(*HOLD))

        return await clients(request, system.stick, system.heal)


async def without() -> list[float]:
    """Each request asks the system, on the event loop."""
    stuck_until = 0.0

    def stick() -> None:
        nonlocal stuck_until
        stuck_until = time.monotonic() + WELL - STUCK

    async def request(size: int) -> None:
        time.sleep(max(0.0, stuck_until - time.monotonic()))  # noqa: ASYNC251 - this is what blocks
        frame = memoryview(bytearray(size))
        frame[::4096] = bytes(size // 4096)
        await asyncio.sleep(random.uniform(*HOLD))

    return await clients(request, stick, lambda: None)


# -- the picture

WIDTH, HEIGHT = 600, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 44, 40

STYLE = """
    .card { fill: #ffffff; stroke: #d8dee4 } .stuck { fill: #fbe3d6 } .grid { stroke: #e6eaee }
    text { font: 14px system-ui, sans-serif; fill: #57606a } .loud { font-weight: 600 }
    .line { fill: none; stroke-width: 2.5; stroke-linejoin: round }
    .ours { stroke: #0b6e99 } .theirs { stroke: #c2410c }
    .ours-text { fill: #0b6e99 } .theirs-text { fill: #c2410c }
    @media (prefers-color-scheme: dark) {
        .card { fill: #161b22; stroke: #30363d } .stuck { fill: #3d2a20 } .grid { stroke: #2a313a }
        text { fill: #a7b1bc } .ours { stroke: #58b4dd } .theirs { stroke: #fb8f5d }
        .ours-text { fill: #58b4dd } .theirs-text { fill: #fb8f5d }
    }
"""


def rates(answered: list[float]) -> list[tuple[float, float]]:
    """Time and requests a second, for each step."""
    steps = round(LENGTH / STEP)
    counts = [0] * steps
    for when in answered:
        if when < LENGTH:
            counts[int(when / STEP)] += 1
    return [((step + 0.5) * STEP, count / STEP) for step, count in enumerate(counts)]


def during(answered: list[float]) -> int:
    """Requests answered while memory was stuck, but for a tenth of a second: those had theirs before."""
    return sum(STUCK + STEP < when < WELL for when in answered)


def draw(ours: list[float], theirs: list[float]) -> str:
    """The picture as SVG: on a card of its own, so that it can be read on any page, light or dark."""
    most = max(rate for _, rate in (*rates(ours), *rates(theirs)))
    top = next(step for step in (200, 500, 1000, 2000, 5000, 10_000) if step >= most)

    def x(seconds: float) -> float:
        return round(LEFT + seconds / LENGTH * (WIDTH - LEFT - RIGHT), 1)

    def y(rate: float) -> float:
        return round(HEIGHT - BOTTOM - rate / top * (HEIGHT - TOP - BOTTOM), 1)

    def line(kind: str, answered: list[float]) -> str:
        points = " ".join(f"{x(when)},{y(rate)}" for when, rate in rates(answered))
        return f'<polyline class="line {kind}" points="{points}"/>'

    told = (
        f"Requests of {CLIENTS} clients answered a second over six seconds. While memory is stuck for three "
        f"seconds, a service on aslab answers {during(ours):,} requests, and one with a fresh buffer for each "
        f"answers {during(theirs):,}."
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}">',
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
        f'<rect class="stuck" x="{x(STUCK)}" y="{TOP}" width="{x(WELL) - x(STUCK)}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/>',
        f'<text class="loud" x="{LEFT}" y="26">requests of {CLIENTS} clients, a second</text>',
        f'<text x="{(x(STUCK) + x(WELL)) / 2}" y="{TOP + 18}" text-anchor="middle">memory is stuck for 3 s</text>',
    ]
    for rate in (0, top // 2, top):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(rate)}" y2="{y(rate)}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(rate) + 4}" text-anchor="end">{rate:,}</text>')
    for second in range(int(LENGTH) + 1):
        anchor = "end" if second == LENGTH else "middle"
        unit = " s" if second == LENGTH else ""
        parts.append(f'<text x="{x(second)}" y="{HEIGHT - 16}" text-anchor="{anchor}">{second}{unit}</text>')
    middle = (x(STUCK) + x(WELL)) / 2
    parts += [
        line("theirs", theirs),
        line("ours", ours),
        f'<text class="loud ours-text" x="{middle}" y="{y(most * 0.55)}" text-anchor="middle">'
        f"aslab: {during(ours):,} answered</text>",
        f'<text class="loud theirs-text" x="{middle}" y="{y(0) - 10}" text-anchor="middle">'
        f"a fresh buffer for each: {during(theirs):,}</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    picture = draw(asyncio.run(with_aslab()), asyncio.run(without()))
    Path(sys.argv[1] if len(sys.argv) > 1 else OUT).write_text(picture, encoding="utf-8")
