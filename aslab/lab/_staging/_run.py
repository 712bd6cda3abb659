"""The story of the staging buffers, run: a server that offloads its KV cache, on machines with different pools.

Nobody injects the deadlock. It arises from its parts, as that of 2012 does: room on the GPU comes back when what
is there has been stored, storing needs a staging buffer, and the staging buffers are held by requests that wait,
with their data loaded, for room on the GPU.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from .._scenario._machine import seed_for
from .._scenario._recording import Span
from .._simulation._run import current, housekeeping
from .._simulation._run import run as run_simulated
from .._simulation._waits import WaitGraph
from ._aslab import OfAslab
from ._desk import Desk, Pool, Staged
from ._driver import Driver
from ._machines import SERVER, Machine, Server
from ._pools import open_pool

PLACES = "GPU places"
OPENS = 0.2
"""Simulated seconds before the first request, by which time every pool is ready."""
SILENCE = 10.0
"""Simulated seconds without progress after which a server counts as stuck: no step takes that long, nor does the
driver. Without this, requests that keep retrying would never count as stuck."""
COUNT_EVERY = 0.05
"""Simulated seconds between points of the curves."""
UNTIL = 600.0
"""Simulated seconds after which a machine that is still running is given up."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the server, the same on every machine."""

    comes: float
    buffers: int
    """Staging buffers it needs to begin: none if there is nothing to retrieve, two if its data is known to be
    encoded."""
    decodes_late: bool
    """Whether it turns out only after loading that the data has to be decoded into another buffer."""
    load: float
    decode: float
    compute: float
    write: float


@dataclass(slots=True)
class Chapter:
    """The result of one machine with one seed."""

    machine: str
    seed: int
    finished: bool = False
    time: float = 0.0
    """Simulated seconds until the last step of any request, counted from before `OPENS`."""
    served: int = 0
    """Requests done, with their data stored."""
    cycle: tuple[str, ...] = ()
    """Who waits on whom, if it is stuck."""
    longest_wait: float = 0.0
    """The longest wait of any request for buffers; requests still waiting count until the end."""
    longest_store_wait: float = 0.0
    """The same for stores alone, which free room on the GPU."""
    tries: int = 0
    """Checks for a free buffer, in the busiest second."""
    pinned_max: int = 0
    """Bytes."""
    emergency_max: int = 0
    """Most emergency objects in use at once."""
    deadlocks: int = 0
    """Times the cache was marked DEADLOCKED."""
    spans: list[Span] = field(default_factory=list)
    """When requests wait for buffers, and when it is stuck."""
    pins: list[Span] = field(default_factory=list)
    counters: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def tell(machine: Machine, seed: int, *, loop: str = "asyncio", server: Server = SERVER) -> Chapter:
    """Run one machine with one seed. Blocks until it has finished, is stuck, or is given up."""
    chapter = Chapter(machine.name, seed)
    run_simulated(_Telling(machine, server, seed, chapter).run, seed=seed, loop=loop, until=UNTIL)
    return chapter


def requests(server: Server, seed: int) -> list[Request]:
    """The requests for a seed, in order of arrival."""
    draw = random.Random(seed_for(seed, "requests"))
    made = []
    now = 0.0
    for _ in range(server.requests):
        now += draw.expovariate(1 / server.between)
        retrieves = draw.random() >= server.new
        encoded = draw.random() < server.encoded
        told = draw.random() < server.told
        made.append(
            Request(
                comes=now,
                buffers=retrieves * (2 if encoded and told else 1),
                decodes_late=retrieves and encoded and not told,
                load=draw.uniform(*server.load),
                decode=draw.uniform(*server.decode),
                compute=draw.uniform(*server.compute),
                write=draw.uniform(*server.write),
            )
        )
    return made


class _Telling:
    """One run."""

    def __init__(self, machine: Machine, server: Server, seed: int, chapter: Chapter) -> None:
        self._machine = machine
        self._server = server
        self._chapter = chapter
        self._waits = WaitGraph()
        self._desk = Desk(self._waits)
        self._driver = Driver(server, random.Random(seed_for(seed, "neighbour")))
        self._requests = requests(server, seed)
        self._last_step = OPENS
        self._waiting = 0
        self._waiting_since = 0.0

    async def run(self) -> None:
        """Run until all requests are served. Records results even if cut off."""
        self._places = anyio.Semaphore(self._server.places)
        async with open_pool(self._machine, self._server, self._driver, self._desk) as pool:
            await anyio.sleep(OPENS - current().time())
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch, tasks.cancel_scope)
                    tasks.start_soon(self._count)
                    async with anyio.create_task_group() as served:
                        for number, request in enumerate(self._requests):
                            served.start_soon(self._serve, pool, request, name=f"request-{number}")
                    self._chapter.finished = True
                    tasks.cancel_scope.cancel()
            finally:
                self._note(pool)

    async def _serve(self, pool: Pool, request: Request) -> None:
        await anyio.sleep(request.comes)
        staged: list[Staged] = []
        if request.buffers:
            self._waits.be("retrieve")
            staged = await self._retrieve(pool, request)
        else:
            self._waits.be("new request")
        with self._waits.on(PLACES):
            await self._places.acquire()
        self._step()
        with self._waits.held(PLACES):
            for one in staged:
                await anyio.sleep(self._copying(one))
                pool.give(one)
            await anyio.sleep(request.compute)
            self._step()
        self._waits.be("store")
        with self._waits.held(PLACES):
            async with self._waiting_for_buffers(store=True):
                one = await pool.finish()
            await anyio.sleep(self._copying(one))
        self._places.release()
        await anyio.sleep(request.write)
        pool.give(one)
        self._chapter.served += 1
        self._step()

    async def _retrieve(self, pool: Pool, request: Request) -> list[Staged]:
        """Load the data of a request. Returns the buffers it will be copied from."""
        async with self._waiting_for_buffers():
            staged = await pool.begin(request.buffers)
        await anyio.sleep(request.load)
        self._step()
        if request.decodes_late:
            async with self._waiting_for_buffers():
                staged.append(await pool.finish())
        if len(staged) > 1:
            await anyio.sleep(request.decode)
            pool.give(staged.pop(0))
            self._step()
        return staged

    def _copying(self, staged: Staged) -> float:
        return self._server.copy * (1 if staged.pinned else self._server.pageable)

    @asynccontextmanager
    async def _waiting_for_buffers(self, *, store: bool = False) -> AsyncIterator[None]:
        began = current().time()
        if not self._waiting:
            self._waiting_since = began
        self._waiting += 1
        try:
            yield
            self._step()
        finally:
            self._waiting -= 1
            now, chapter = current().time(), self._chapter
            chapter.longest_wait = max(chapter.longest_wait, now - began)
            if store:
                chapter.longest_store_wait = max(chapter.longest_store_wait, now - began)
            until = min(now, self._last_step)
            if not self._waiting and until > self._waiting_since:
                chapter.spans.append(Span(chapter.machine, "waiting", self._waiting_since, until))

    def _step(self) -> None:
        self._last_step = current().time()

    async def _watch(self, scope: anyio.CancelScope) -> None:
        """Once nothing has made progress for long, record why, and end the run."""
        housekeeping()
        while (left := self._last_step + SILENCE - current().time()) > 0:  # noqa: ASYNC110  (as in _story.py)
            await anyio.sleep(left)
        self._chapter.cycle = self._waits.cycle()
        self._chapter.spans.append(Span(self._machine.name, "stuck", self._last_step, current().time()))
        scope.cancel()

    async def _count(self) -> None:
        """Record the curves at intervals."""
        housekeeping()
        while True:
            self._note_counters()
            await anyio.sleep(COUNT_EVERY)

    def _note_counters(self) -> None:
        values = {"served": self._chapter.served, "pinned": self._driver.pinned // self._server.buffer}
        for what, value in values.items():
            self._chapter.counters.setdefault(what, []).append((current().time(), value))

    def _note(self, pool: Pool) -> None:
        self._note_counters()
        chapter = self._chapter
        chapter.time = self._last_step
        chapter.tries = max(self._desk.looks.values(), default=0)
        chapter.pinned_max = self._driver.highest
        chapter.pins = [Span(chapter.machine, "growing", *call) for call in self._driver.calls]
        if isinstance(pool, OfAslab):
            stats = pool.cache.stats()
            chapter.emergency_max, chapter.deadlocks = stats.obj_emergency_max, stats.obj_deadlock
