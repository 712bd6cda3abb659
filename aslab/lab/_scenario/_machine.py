"""The machine of a scenario: its memory, and its backends with their faults, observed.

Each random part has its own seed, derived from the run's seed and the part's name, so that what one part
draws does not affect the others.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import anyio

from ..._errors import ConfigError
from ..._flags import GFP
from ...backends import Backend, Heap, Mmap, Region
from ...emulation import AddressSpace, Kmalloc, PageCache, PhysicalMemory, Pins, Vmalloc
from ...faults import Deadlock, Failslab, Latency
from ._schema import (
    AnyBackend,
    DeadlockFault,
    FailslabFault,
    Fault,
    HeapBackend,
    KmallocBackend,
    LatencyFault,
    Memory,
    MmapBackend,
    Scenario,
    VmallocBackend,
)


def seed_for(seed: int, name: str) -> int:
    """The seed of one part of a run, the same in every process."""
    return random.Random(f"{seed}/{name}").getrandbits(32)


class Machine:
    """Memory and backends, built anew for each run.

    :raises ConfigError: if one of the parts refuses its options; it names the key in the file
    """

    def __init__(self, scenario: Scenario, seed: int) -> None:
        section = scenario.memory
        with keys_under("memory"):
            self.memory = PhysicalMemory(section.pages, min=section.min, low=section.low, high=section.high)
        self._cache = _page_cache(self.memory, section, seed_for(seed, "memory"))
        self._pins: list[Pins] = []
        self.pin(section.pinned)
        self.space = AddressSpace()
        """The one that all vmalloc backends of the machine share."""
        self._sections = scenario.backends
        self._seed = seed
        self.backends: dict[str, Backend] = {}
        """By name, as in the file."""
        for name in scenario.backends:
            self._get(name, ())

    def _get(self, name: str, outer: tuple[str, ...]) -> Backend:
        """Build the backend of that name and what it wraps; ``outer`` are those that wrap it."""
        key = f"backends.{outer[-1]}.of" if outer else ""
        if name in outer:
            circle = ", which wraps ".join(repr(one) for one in (*outer[outer.index(name) :], name))
            raise ConfigError(key, name, f"it must not lead back to itself: {circle}")
        if name not in self._sections:
            raise ConfigError(
                key, name, f"it must be one of the backends in the file: {', '.join(self._sections)}"
            )
        if name not in self.backends:
            section = self._sections[name]
            wrapped = self._get(section.of, (*outer, name)) if isinstance(section, Fault) else None
            with keys_under(f"backends.{name}"):
                self.backends[name] = self._make(section, wrapped, seed_for(self._seed, f"backends/{name}"))
        return self.backends[name]

    def _make(self, section: AnyBackend, wrapped: Any, seed: int) -> Backend:
        options = {
            field: getattr(section, field) for field in type(section).model_fields if field not in ("kind", "of")
        }
        match section:
            case VmallocBackend():
                return Vmalloc(self.memory, space=self.space, seed=seed, **options)
            case KmallocBackend():
                return Kmalloc(self.memory, seed=seed, **options)
            case MmapBackend():
                return Mmap()
            case HeapBackend():
                return Heap()
            case LatencyFault():
                return Latency(wrapped, seed=seed, **options)
            case DeadlockFault():
                options["window"] = tuple(section.window) if section.window else None
                options["seed"] = seed if section.probability is not None else 0
                return Deadlock(wrapped, **options)
            case FailslabFault():
                return Failslab(wrapped, seed=seed, **options)

    @property
    def pages_missing(self) -> int:
        """Pages that are not free, pinned or in the page cache."""
        memory, cache = self.memory, self._cache
        return memory.pages - memory.free_pages - memory.pinned - cache.clean - cache.dirty

    def pin(self, share: float) -> None:
        """Pin that share of all pages, spread evenly."""
        self._pins.append(self.memory.fragment(share))

    def unpin(self) -> None:
        """Release all pinned pages."""
        while self._pins:
            self._pins.pop().release()

    def let_go(self, name: str | None = None) -> None:
        """End the deadlock of that backend, or all deadlocks."""
        for one, backend in self.backends.items():
            if isinstance(backend, Deadlock) and name in (None, one):
                backend.let_go()


@contextlib.contextmanager
def keys_under(path: str) -> Iterator[None]:
    """Prefix the field of a ConfigError with its place in the file."""
    try:
        yield
    except ConfigError as exc:
        raise ConfigError(f"{path}.{exc.field}", exc.given, exc.allowed) from None


def _page_cache(memory: PhysicalMemory, section: Memory, seed: int) -> PageCache:
    most = max(0, memory.pages - memory.min)
    for field, held in (("clean", section.clean), ("dirty", section.clean + section.dirty)):
        if held > most:
            allowed = (
                f"it must be at most {most} pages, clean and dirty together: the rest is below the watermark min"
            )
            raise ConfigError(f"memory.{field}", getattr(section, field), allowed)
    return PageCache(
        memory,
        clean=section.clean,
        dirty=section.dirty,
        scan=section.scan,
        writeback=section.writeback,
        seed=seed,
    )


class Observed:
    """Wraps a backend and reports every request and every result.

    ``tell`` is called with the name, a word, a detail, and the time of the request on the event loop's clock.
    """

    def __init__(self, backend: Backend, name: str, tell: Callable[[str, str, str, float], object]) -> None:
        self.backend = backend
        self.outstanding: int = 0
        """Regions handed out and not yet returned."""
        self._name = name
        self._tell = tell

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Ask the wrapped backend, and report."""
        began = anyio.current_time()
        self._tell(self._name, "asked", f"{nbytes} bytes", began)
        try:
            region = await self.backend.acquire(nbytes, align, gfp)
        except MemoryError as exc:
            self._tell(self._name, "failed", str(exc), began)
            raise
        except anyio.get_cancelled_exc_class():
            self._tell(self._name, "cancelled", "", began)
            raise
        return self._given(region, nbytes, began)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Ask the wrapped backend, and report. Event loop's thread only, where a scenario's tasks run."""
        now = anyio.current_time()
        try:
            region = self.backend.acquire_nowait(nbytes, align, gfp)
        except (MemoryError, anyio.WouldBlock) as exc:
            self._tell(self._name, "refused", str(exc), now)
            raise
        return self._given(region, nbytes, now)

    async def release(self, region: Region) -> None:
        """Release to the wrapped backend, and report."""
        await self.backend.release(region)
        self.outstanding -= 1
        self._tell(self._name, "released", "", anyio.current_time())

    def _given(self, region: Region, nbytes: int, began: float) -> Region:
        self.outstanding += 1
        self._tell(self._name, "gave", f"{nbytes} bytes", began)
        return region
