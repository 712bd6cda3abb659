"""A protocol that receives straight into buffers, and hands them over whole.

    socket ──► scratch ──► a buffer is taken, or reading pauses until there is one
    socket ──► the rest of that buffer ──► full, or the end ──► after the callback: to its owner

Always true: a buffer leaves for its owner outside of the event loop's callbacks, because uvloop exports the memory
until the callback returns; and reading is paused whenever there is nothing to read into.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar, cast

import anyio

from .._cache import Cache
from .._checks import optional, optional_function, whole_number
from .._errors import CorruptionError, clear_frames
from .._fastpath import Buffer, Pin
from .._gather import PEEK

T = TypeVar("T")


class BufferedReceiver(asyncio.BufferedProtocol, Generic[T]):
    """A connection's bytes in whole buffers, each full but the last, without a copy: ``recv_into`` their memory.

    For ``loop.create_server`` and ``loop.create_connection``. Without ``deliver`` it is an async iterator of
    buffers, each with the number of bytes in it. The iterator ends with the connection, and raises what broke it.
    Whoever gets a buffer frees it.

    Reading pauses while the cache has no buffer, and while ``ahead`` of them wait for the iterator; it resumes by
    itself. An idle connection holds no buffer: the first 1024 bytes for each are read beforehand, and copied.

    When the peer has sent everything, the connection stays open for what you send (not with TLS): close it with
    `aclose`, or ``transport.close()``. A buffer that a broken connection left part full is dropped. To do more in
    the protocol's callbacks, override them, and call these.

    :param cache: where the buffers come from, of the allocator on the same event loop
    :param deliver: called with each buffer and its number of bytes, on the event loop; what it raises goes to the
        loop's exception handler
    :param at_least: hand over a buffer as soon as it has so many bytes; by default, when it is full
    :param ahead: the most buffers that wait for the iterator
    """

    transport: asyncio.Transport

    def __init__(
        self,
        cache: Cache[T],
        deliver: Callable[[Buffer[T], int], object] | None = None,
        *,
        at_least: int | None = None,
        ahead: int = 4,
    ) -> None:
        optional_function("deliver", deliver)
        optional(whole_number, least=1, most=cache.size)("at_least", at_least)
        whole_number("ahead", ahead, 1)
        self._cache = cache
        self._deliver = deliver or self._queue
        self._at_least = at_least or cache.size
        self._ahead = ahead
        self._scratch = memoryview(bytearray(min(PEEK, cache.size)))
        self._scratched = 0  # bytes in it that wait for a buffer
        self._filling: _Filling[T] | None = None
        self._filled: deque[_Filling[T]] = deque()  # until the callback is over
        self._ready: deque[tuple[Buffer[T], int]] = deque()  # for the iterator
        self._taking: asyncio.Task[None] | None = None
        self._paused = False
        self._ended = False
        self._error: Exception | None = None
        self._change = asyncio.Event()
        self._lost = asyncio.Event()

    # -- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to: what is left of the buffer, or the scratch memory."""
        return self._scratch if self._filling is None else self._filling.rest()

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come."""
        if self._filling is None:
            self._scratched = nbytes
            self._take()
        else:
            self._filling.end += nbytes
            self._look_at_filling()
        self._regulate()

    def eof_received(self) -> bool:
        """Hand over what there is. Returns whether the transport stays open."""
        self._end()
        return self.transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything but what is on its way to its owner."""
        clear_frames(exc)  # the loop's keep the memory it was reading into
        self._error = self._error or exc
        self._scratched = 0
        if self._taking is not None:
            self._taking.cancel()
        if not self._ended and self._filling is not None:  # broken: what is not full is dropped
            self._filling.end = 0
        self._end()
        self._lost.set()

    # -- for the owner

    def __aiter__(self) -> BufferedReceiver[T]:
        return self

    async def __anext__(self) -> tuple[Buffer[T], int]:
        while not self._ready:
            if self._over:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._change.clear()
            await self._change.wait()
        step = self._ready.popleft()
        self._regulate()
        return step

    async def aclose(self) -> None:
        """Close the connection, free what the iterator did not take, and wait until what was sent is out."""
        self.transport.close()
        try:
            await self._lost.wait()
        finally:
            while self._ready:
                with suppress(CorruptionError):  # found by a debug letter: it is logged, and the buffer is free
                    self._ready.popleft()[0].free()

    async def wait_closed(self) -> None:
        """Wait until the connection is gone.

        :raises OSError: what broke it, if anything did
        """
        await self._lost.wait()
        if self._error is not None:
            raise self._error

    # -- inside

    @property
    def _over(self) -> bool:
        return self._ended and not (self._filled or self._scratched)

    def _take(self) -> None:
        try:
            self._begin(self._cache.alloc_nowait())
        except anyio.WouldBlock:
            self._taking = asyncio.ensure_future(self._wait_for_one())
        except Exception as exc:
            self._fail(exc)

    async def _wait_for_one(self) -> None:
        try:
            buf = await self._cache.alloc()
        except Exception as exc:
            self._fail(exc)
            return
        finally:
            self._taking = None
        if self._scratched:
            self._begin(buf)
        else:  # the connection was lost meanwhile
            buf.free()
        self._regulate()

    def _begin(self, buf: Buffer[T]) -> None:
        filling = self._filling = _Filling(buf)
        filling.view[: self._scratched] = self._scratch[: self._scratched]
        filling.end, self._scratched = self._scratched, 0
        self._look_at_filling()

    def _look_at_filling(self) -> None:
        """Hand over what is full enough, or the last."""
        filling = self._filling
        if filling is not None and (filling.end >= self._at_least or self._ended):
            self._filling = None
            self._filled.append(filling)
            asyncio.get_running_loop().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        filling = self._filled.popleft()
        buf = filling.finish()
        try:
            if filling.end:
                self._deliver(buf, filling.end)
            else:
                buf.free()
        finally:
            self._change.set()
            self._regulate()

    def _queue(self, buf: Buffer[T], nbytes: int) -> None:
        self._ready.append((buf, nbytes))

    def _end(self) -> None:
        self._ended = True
        self._look_at_filling()
        self._change.set()

    def _fail(self, exc: Exception) -> None:
        self.transport.abort()
        self._scratched = 0
        self._error = exc

    def _regulate(self) -> None:
        """Pause or resume reading."""
        pause = bool(self._scratched) or len(self._ready) + len(self._filled) >= self._ahead
        if pause is self._paused or self._ended or self.transport.is_closing():
            return
        self._paused = pause
        if pause:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()


class _Filling(Generic[T]):
    """A buffer that is being read into."""

    def __init__(self, buf: Buffer[T]) -> None:
        self.end = 0
        self._buf = buf
        self._pin: Pin = buf.pin()
        self.view = self._pin.__enter__()
        self._rest: memoryview | None = None

    def rest(self) -> memoryview:
        """The memory that has nothing in it yet."""
        self._let_go()
        self._rest = self.view[self.end :]
        return self._rest

    def finish(self) -> Buffer[T]:
        """End every view that was made here."""
        self._let_go()
        self.view = memoryview(b"")
        self._pin.__exit__(None, None, None)
        return self._buf

    def _let_go(self) -> None:
        if self._rest is not None:
            self._rest.release()
            self._rest = None
