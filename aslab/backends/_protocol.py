"""What the allocator requires of a source of memory: three methods, and the region they pass."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from .._flags import GFP


def address_of(view: memoryview) -> int:
    """The address of the first byte of a writable, contiguous view."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) if view.nbytes else 0


@dataclass(slots=True, eq=False)
class Region:
    """A piece of writable memory on loan from a backend."""

    memory: memoryview
    """The bytes: writable, contiguous, format ``B``, at least as many as were asked for."""
    address: int
    """The address of the first byte; a multiple of the alignment asked for."""
    token: object = None
    """Whatever the backend needs to release it. Nothing else uses it."""

    @classmethod
    def over(cls, buffer: object, *, align: int = 1, token: object = None) -> Region:
        """A region over any writable buffer, from its first address that is a multiple of ``align``.

        :raises TypeError: if ``buffer`` has no writable, contiguous buffer
        """
        view = memoryview(buffer)  # type: ignore[arg-type]
        if view.readonly:
            raise TypeError(f"a region needs a writable buffer, not a read-only {type(buffer).__name__}")
        memory = view.cast("B")
        memory = memory[-address_of(memory) % align :]
        return cls(memory, address_of(memory), token)


@runtime_checkable
class Backend(Protocol):
    """A source of memory. Any object with these three methods is one."""

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Get ``nbytes`` bytes at a multiple of ``align`` (a power of two). May take long.

        It runs on the event loop and must not block it: slow calls belong in a thread. It may be cancelled, and
        must then leave nothing behind.

        :raises MemoryError: if there is no memory now; growth retries later
        """
        ...

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Like `acquire`, but at once, without blocking, and from any thread.

        :raises MemoryError: if there is no memory now
        :raises anyio.WouldBlock: if it would have to wait
        """
        ...

    async def release(self, region: Region) -> None:
        """Take back a region that this backend provided.

        Suspends, perhaps for long; must not block the event loop.

        A region that is given back after its allocator was closed is released in another thread, on an asyncio
        event loop of its own.
        """
        ...


@runtime_checkable
class Batching(Backend, Protocol):
    """A backend may also deliver several regions by one call, where a call costs as much as the memory.

    A class, or an instance, that inherits this and overrides ``acquire`` alone is asked for one region at a time.
    """

    async def acquire_many(self, count: int, nbytes: int, align: int, gfp: GFP, within: float) -> list[Region]:
        """Like `Backend.acquire`, for up to ``count`` regions, but at least one.

        :param within: seconds after which it begins no further one
        :raises MemoryError: if there is no memory for the first
        """
        ...


@runtime_checkable
class Streaming(Backend, Protocol):
    """A backend may also pass on one region after another, and go on with the next meanwhile.

    What inherits this and overrides ``acquire`` alone is asked for one region at a time, as with `Batching`.
    """

    async def acquire_each(self, nbytes: int, align: int, gfp: GFP, deliver: Callable[[Region], bool]) -> None:
        """Like `Backend.acquire`, again and again: until ``deliver`` returns False, it gets each region at once.

        It may be called in any thread, and does not block; from then on the region is the caller's. If the call
        is cancelled, a region that comes later is passed on as well, once.

        :raises MemoryError: if there is no memory for one; those passed on stay the caller's
        """
        ...


@runtime_checkable
class Owning(Backend, Protocol):
    """A backend may also have regions that need no release: each has an owner of its memory, and goes with that.

    While such a region is in use as an emergency object, its owner alone is kept, and is then dropped. So it costs
    neither a `Region` nor a view, which the garbage collector would visit in each collection. What inherits
    this and overrides acquires or releases has each region kept, and released.
    """

    def region_owner(self, region: Region) -> object | None:
        """``region.memory.obj``, if that frees the memory once nothing refers to it; None to have it released.

        Anything else, and any exception, is a broken contract: the region is released, and callers are told.
        """
        ...


def batching(backend: Backend) -> Batching | None:
    """The backend, if it can deliver several regions as it would each one."""
    return backend if isinstance(backend, Batching) and _of_one_class(backend, "acquire_many") else None


def streaming(backend: Backend) -> Streaming | None:
    """The backend, if it can pass on one region after another as it would each one."""
    return backend if isinstance(backend, Streaming) and _of_one_class(backend, "acquire_each") else None


def owning(backend: Backend) -> Owning | None:
    """The backend, if it knows the owners of its regions."""
    methods = ("region_owner", "acquire_nowait", "release")
    return backend if isinstance(backend, Owning) and _of_one_class(backend, *methods) else None


def _of_one_class(backend: Backend, *methods: str) -> bool:
    owners = [getattr(backend, "__dict__", {}), *map(vars, type(backend).__mro__)]
    one, *others = (next((owner for owner in owners if name in owner), None) for name in ("acquire", *methods))
    return all(other is one for other in others)
