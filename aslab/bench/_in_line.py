"""What each operation costs where very many callers wait, and what it costs with bare tasks instead.

A task has its price, whatever it sleeps on: the loop's and anyio's own sets and dictionaries grow with the tasks,
each timeout is a timer of the loop, and the garbage collector walks them all. So the same number of tasks sleep on
a future of the loop each, the least there is, and join, are served, cancelled and sent away in the same way. What
aslab adds is the difference.
"""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from typing import NamedTuple

import anyio
import anyio.lowlevel

import aslab
from aslab._kmem._clock import Future, futures_of_this_loop

from ._many import AT_ONCE, NEVER, SIZE, Heart, beating, each
from ._measured import Values

End = Callable[[list[anyio.CancelScope]], Awaitable[object]]
"""What ends the wait of all callers, given the scope of each."""


class Line(NamedTuple):
    """How callers wait, and what ends it."""

    wait: Callable[[float | None], Awaitable[object]]
    """What each task awaits, given a timeout."""
    begin: Callable[[], Awaitable[object]]
    """Called before the first comes."""
    serve: Callable[[], object]
    """Serves the first; each that is served serves the next."""
    close: Callable[[], Awaitable[object]]
    """Sends all away."""


async def waiters(count: int) -> Values:
    """So many callers wait for one object."""
    held: list[aslab.Buffer[memoryview]] = []
    async with beating() as (heart, _), aslab.open_allocator(expire=None) as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1, objects_per_slab=1)

        async def wait(timeout: float | None) -> None:
            with suppress(aslab.CacheClosedError, TimeoutError):
                (await cache.alloc(timeout=timeout)).free()

        async def begin() -> None:
            if not held:
                held.append(await cache.alloc())

        async def close() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # one is held meanwhile
                await cache.aclose()

        await _stages(heart, count, Line(wait, begin, lambda: held.pop().free(), close))
        held.pop().free()
    return heart.costs


async def bare_tasks(count: int) -> Values:
    """So many tasks sleep on a bare future each."""
    make = futures_of_this_loop()
    line: list[Future] = []
    steps = 1

    async def wait(timeout: float | None) -> None:
        place = len(line)
        line.append(make())
        with nullcontext() if timeout is None else anyio.move_on_after(timeout):
            await line[place]
            wake(place + steps)

    def wake(place: int) -> None:
        if place < len(line):
            line[place].set_result(None)

    async def begin() -> None:
        line.clear()

    async def close() -> None:
        nonlocal steps
        steps = AT_ONCE
        for place in range(AT_ONCE):
            wake(place)

    async with beating() as (heart, _):
        await _stages(heart, count, Line(wait, begin, lambda: wake(0), close))
    return heart.costs


async def _stages(heart: Heart, count: int, line: Line) -> None:
    async def wait(scope: anyio.CancelScope, timeout: float | None) -> None:
        with scope:
            await line.wait(timeout)

    async def stage(name: str, end: End, timeout: float | None = None) -> None:
        scopes = [anyio.CancelScope() for _ in range(count)]
        await line.begin()
        async with anyio.create_task_group() as tasks:
            async with heart.stage(f"join, {name}", count):
                for number, scope in enumerate(scopes):
                    tasks.start_soon(wait, scope, timeout)
                    await each(number)
                await anyio.lowlevel.checkpoint()
            leaving = heart.stage(name, count)
            await leaving.__aenter__()
            await end(scopes)
        await leaving.__aexit__(None, None, None)

    async def serve(_: object) -> None:
        line.serve()

    async def cancel(scopes: list[anyio.CancelScope]) -> None:
        for number, scope in enumerate((*scopes[::2], *reversed(scopes[1::2]))):
            scope.cancel()
            await each(number)

    async def close(_: object) -> None:
        await line.close()

    await stage("serve", serve)
    await stage("cancel in the middle", cancel)
    await stage("cancel, with timeouts", cancel, NEVER)
    await stage("close", close)
