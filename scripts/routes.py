"""How far an allocation travels: files entered, calls from file to file, and re-entries, for five routes.

    python scripts/routes.py [--package DIR] [--against DIR] [--route NAME ...] [--calls] [--json]

The routes, each from the call named to its return:

    hit       alloc() with an object in the magazine
    miss      alloc() in a cache without a slab, which grows
    timeout   alloc() while a slab does not come; ends with an emergency object
    free      free() while a task waits in alloc(), which then has the object; ends as that alloc() returns
    move      defragment() of two slabs that are half full: one object moves, and one slab goes back

What is counted is what `sys.setprofile` tells of Python functions of aslab, on the event loop's thread, whichever
task they run in. C functions, and Python functions of others (anyio, asyncio, this script), do not count.

    call        A function begins to run, and the frame below it on the stack is aslab's, too. A coroutine begins
                when it is first awaited; each later resumption of it, or of a generator, is no call. The stack is
                that of the frames: for a coroutine, whoever awaits it.
    calls       Those of them where the two functions are in different files.
    files       Files with a function that began, or was called from outside of aslab.
    re-entries  Those of `calls` into a file that is already on the stack, below the caller.

Memory is a bytearray that comes at once, without a thread, and time is simulated; so the figures are the same
each time. Only public names are used, so the script measures any aslab: the one that Python finds, or the one of
the checkout that ``--package`` names. ``--against`` measures a second one, and shows before -> after. ``--calls``
lists the calls from file to file in order: each is indented by the calls that it stands in, ``*`` marks a
re-entry, ``--`` what is called from outside of aslab, such as each step of a task.

Exit code 0 once the figures are printed, 1 if a checkout cannot be measured, 2 for a bad option.
"""

from __future__ import annotations

import argparse
import asyncio
import dis
import functools
import gc
import json
import logging
import os
import selectors
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel

import aslab
from aslab.backends import Region

HOME = f"{Path(aslab.__file__).parent}{os.sep}"
SIZE = 4096
TURNS = 30
"""Turns of the loop after which every task that can run has run."""
FIGURES = ("files", "calls", "reentries")
Report = dict[str, dict[str, Any]]


class Call(NamedTuple):
    """A function of aslab that began to run, or a task that went on in one."""

    caller: CodeType | None  # None where it was called from outside of aslab
    callee: CodeType
    depth: int = 0  # calls from file to file that it stands in
    again: bool = False  # its file is on the stack, below the caller
    resumed: bool = False  # no call: a task goes on

    @property
    def crosses(self) -> bool:
        """Whether it goes from one file to another."""
        return self.caller is not None and self.caller.co_filename != self.callee.co_filename

    def __str__(self) -> str:
        if self.caller is None:
            return f"-- {name_of(self.callee)}{', resumed' if self.resumed else ''}"
        mark = "*" if self.again else " "
        return f"{mark}  {'  ' * self.depth}{name_of(self.caller)} -> {name_of(self.callee)}"


def name_of(code: CodeType) -> str:
    """File and function, as in ``_slab: Slab.carve``."""
    return f"{code.co_filename.removeprefix(HOME).removesuffix('.py')}: {code.co_qualname}"


@functools.cache
def start_of(code: CodeType) -> int:
    """Where a function's own code begins; a coroutine that is resumed is further on."""
    return next((step.offset for step in dis.get_instructions(code) if step.opname.startswith("RESUME")), 0)


class Recorder:
    """The calls of one route."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @contextmanager
    def on(self) -> Iterator[None]:
        """Record in this block, and until `stop`."""
        gc.collect()
        gc.disable()  # a finaliser would come at any moment
        sys.setprofile(self._note)
        try:
            yield
        finally:
            self.stop()
            gc.enable()

    def stop(self) -> None:
        """The route has ended."""
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(HOME):
            return
        below = list(stack_below(frame))
        caller = below[0] if below and below[0].co_filename.startswith(HOME) else None
        if frame.f_lasti > start_of(code):
            if caller is None:
                self.calls.append(Call(None, code, resumed=True))
            return
        inside = [one.co_filename for one in below if one.co_filename.startswith(HOME)]
        depth = sum(one != other for one, other in pairwise(inside))
        crosses = caller is not None and caller.co_filename != code.co_filename
        self.calls.append(Call(caller, code, depth, crosses and code.co_filename in inside))

    def report(self, *, listed: bool) -> dict[str, Any]:
        """The figures of the route."""
        crossing = [call for call in self.calls if call.crosses]
        found: dict[str, Any] = {
            "files": len({call.callee.co_filename for call in self.calls if not call.resumed}),
            "calls": len(crossing),
            "reentries": sum(call.again for call in crossing),
        }
        if listed:
            found["listed"] = [str(call) for call in self.calls if call.crosses or call.caller is None]
        return found


def stack_below(frame: FrameType) -> Iterator[CodeType]:
    """Whoever called a frame, and so on down."""
    below = frame.f_back
    while below is not None:
        yield below.f_code
        below = below.f_back


class Memory:
    """Memory that comes at once, without a thread; with its gate shut, it does not come."""

    def __init__(self, *, shut: bool = False) -> None:
        self.gate = anyio.Event()
        if not shut:
            self.gate.set()

    async def acquire(self, nbytes: int, align: int, gfp: aslab.GFP) -> Region:
        """As any backend."""
        await self.gate.wait()
        return self.acquire_nowait(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: aslab.GFP) -> Region:
        """As any backend."""
        if not self.gate.is_set():
            raise anyio.WouldBlock
        return Region.over(bytearray(nbytes + align), align=align)

    async def release(self, region: Region) -> None:
        """As any backend."""
        await anyio.lowlevel.checkpoint()


class Clock(selectors.DefaultSelector):
    """What a loop sleeps in. It does not sleep: time jumps to the next timer once nothing else is left to do."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As any selector, without waiting."""
        ready = super().select(0)
        if not ready and timeout is not None:
            self.now += max(0.0, timeout)
        return ready


class Loop(asyncio.SelectorEventLoop):
    """An event loop in simulated time."""

    def __init__(self) -> None:
        self._clock = Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        """Simulated seconds."""
        return self._clock.now


async def settle() -> None:
    """Let every task that can run, run."""
    for _ in range(TURNS):
        await anyio.lowlevel.checkpoint()


def check(held: bool, what: str) -> None:
    """End the measurement where a route is not the one that its name says."""
    if not held:
        raise RuntimeError(f"this is another route: {what}")


@asynccontextmanager
async def cache(slabs: Memory | None = None, **options: Any) -> AsyncIterator[aslab.Cache[memoryview]]:
    """A cache of an allocator of its own, whose tasks all wait."""
    slabs = slabs or Memory()
    async with aslab.open_allocator(slabs=slabs, emergency=Memory(), grow_timeout=0.1) as kmem:
        made = kmem.create_cache("c", SIZE, **options)
        await settle()
        yield made
        slabs.gate.set()


async def hit(recorder: Recorder) -> None:
    """The object is at hand."""
    async with cache() as c:
        await c.prefill(1)
        (await c.alloc()).free()
        before = c.stats().hits
        with recorder.on():
            buf = await c.alloc()
        check(c.stats().hits == before + 1, "no hit")
        buf.free()


async def miss(recorder: Recorder) -> None:
    """The cache grows."""
    async with cache() as c:
        with recorder.on():
            buf = await c.alloc()
        check(c.stats().slab_create == 1 and not buf.emergency, "nothing grew")
        buf.free()


async def timeout(recorder: Recorder) -> None:
    """A slab does not come in time."""
    async with cache(Memory(shut=True)) as c:
        with recorder.on():
            buf = await c.alloc()
        check(buf.emergency, "no emergency object")
        buf.free()


async def free(recorder: Recorder) -> None:
    """A task waits for what is freed."""
    async with cache(objects_per_slab=1, max_objects=1) as c:
        held = await c.alloc()
        await settle()
        before = c.stats().waits
        done = anyio.Event()

        async def wait() -> None:
            buf = await c.alloc()
            recorder.stop()
            buf.free()
            done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await settle()
            with recorder.on():
                held.free()
                await done.wait()
        check(c.stats().waits == before + 1, "nobody waited")


async def move(recorder: Recorder) -> None:
    """An object leaves a slab, which goes."""
    async with cache(objects_per_slab=2, movable=True) as c:
        bufs = [await c.alloc() for _ in range(4)]
        stay, other = bufs[0], bufs[2]
        for buf in (bufs[1], bufs[3]):
            buf.free()
        await settle()
        before = {stay.address, other.address}
        with recorder.on():
            await c.defragment()
        check(c.stats().slab_total == 1 and {stay.address, other.address} != before, "nothing moved")
        stay.free()
        other.free()


ROUTES: dict[str, tuple[str, Callable[[Recorder], Awaitable[None]]]] = {
    "hit": ("hit", hit),
    "miss": ("miss with growth", miss),
    "timeout": ("timeout and emergency", timeout),
    "free": ("free to a waiter", free),
    "move": ("move", move),
}


def measure(names: Sequence[str], *, listed: bool = False) -> Report:
    """The figures of these routes, of the aslab that was imported."""
    report: Report = {}
    for name in names:
        recorder = Recorder()
        anyio.run(ROUTES[name][1], recorder, backend="asyncio", backend_options={"loop_factory": Loop})
        report[name] = recorder.report(listed=listed)
    return report


def measure_there(checkout: Path, names: Sequence[str], *, listed: bool) -> Report:
    """The same, of a checkout: by this script, in a process that finds it first."""
    if not (checkout / "aslab" / "__init__.py").is_file():
        raise FileNotFoundError(f"{checkout}: no checkout, it has no aslab/__init__.py")
    path = os.pathsep.join(filter(None, (str(checkout.resolve()), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(Path(__file__).resolve()), "--json"]
    command += [word for name in names for word in ("--route", name)] + ["--calls"] * listed
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, check=True)
    report: Report = json.loads(done.stdout)
    return report


def table(after: Report, before: Report | None) -> str:
    """Lined up; before -> after where there are two."""
    rows = [("route", "files", "calls", "re-entries")]
    for name, figures in after.items():
        shown = [str(figures[one]) for one in FIGURES]
        if before is not None:
            shown = [f"{before[name][one]} -> {now}" for one, now in zip(FIGURES, shown, strict=True)]
        rows.append((ROUTES[name][0], shown[0], shown[1], shown[2]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))).rstrip() for row in rows)
    return "\n".join(lines)


def main(args: list[str] | None = None) -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--package", type=Path, metavar="DIR", help="the checkout to measure")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout, shown as before")
    parser.add_argument("--route", action="append", choices=ROUTES, help="only this one; may be repeated")
    parser.add_argument("--calls", action="store_true", help="list the calls from file to file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(args)
    names = [name for name in ROUTES if given.route is None or name in given.route]
    before: Report | None = None
    try:
        if given.package is None:
            after = measure(names, listed=given.calls)
        else:
            after = measure_there(given.package, names, listed=given.calls)
        if given.against is not None:
            before = measure_there(given.against, names, listed=given.calls)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps(after if before is None else {"before": before, "after": after}, indent=2))
        return 0
    print(table(after, before))
    for name, figures in after.items():
        if given.calls:
            print("", ROUTES[name][0], *figures["listed"], sep="\n")
    return 0


if __name__ == "__main__":
    logging.disable()  # that a slab is late is part of a route
    sys.exit(main())
