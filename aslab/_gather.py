"""Gathering: a stream's bytes in whole buffers, each full but the last.

Always true: between two steps no buffer is held, and of the stream at most what cannot be read in part: an ASGI
message, or a chunk of an iterable.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import anyio
from anyio.abc import ByteReceiveStream

from ._cache import Cache
from ._errors import ConfigError
from ._fastpath import Buffer

T = TypeVar("T")

PEEK = 1024
"""Bytes of a stream that are read before a buffer is taken for them, where that is possible."""


@runtime_checkable
class Reader(Protocol):
    """As `asyncio.StreamReader`."""

    async def read(self, n: int = ..., /) -> bytes:
        """Read up to so many bytes; none is the end."""


Read = Callable[[int], Awaitable[bytes | None]]
"""Reads some bytes, up to so many where the stream can; None is the end."""
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Stream = ByteReceiveStream | Reader | AsyncIterable[bytes] | Receive


def gather(stream: Stream, cache: Cache[T]) -> Gather[T]:
    """``async for buf, n in aslab.gather(stream, cache)`` is a stream in whole buffers, each full but the last.

    ``n`` is the number of the stream's bytes in the buffer, which belongs to the caller, who frees it. An empty
    stream gives none.

    Reading goes on once there is a buffer: that is the backpressure. So free each buffer before the next, or know
    that there are enough. Finding the end of a stream takes no buffer. An idle byte stream holds none either: its
    next 1024 bytes are read first. An ASGI message cannot be read in part, so the first buffer is taken before the
    first message.

    If reading into a buffer fails or is cancelled, that buffer is freed, and the rest of the stream cannot be
    gathered. A wait for a buffer may be cancelled and repeated. One task at a time; event loop's thread only.

    :param stream: an anyio ByteReceiveStream, an `asyncio.StreamReader`, the ``receive`` of an ASGI server (HTTP),
        or an async iterable of bytes
    :raises ConfigError: if it is none of them
    :raises anyio.BrokenResourceError: from a step, if the client of an ASGI server disconnects
    :raises anyio.ClosedResourceError: from a step after one that failed, or after `Gather.aclose`
    """
    if isinstance(stream, ByteReceiveStream):
        return Gather(cache, _of_bytes(stream), PEEK)
    if isinstance(stream, Reader):
        return Gather(cache, _of_reader(stream), PEEK)
    if isinstance(stream, AsyncIterable):
        return Gather(cache, _of_iterable(stream), 0)
    if callable(stream):
        return Gather(cache, _of_asgi(stream), 0)
    raise ConfigError(
        "stream",
        stream,
        "it must be an anyio ByteReceiveStream, an asyncio.StreamReader, an ASGI receive, or an async iterable",
    )


class Gather(AsyncIterator[tuple[Buffer[T], int]]):
    """What `gather` returns. Holds no buffer between two steps, so it may just be dropped."""

    def __init__(self, cache: Cache[T], read: Read, peek: int) -> None:
        self._cache = cache
        self._read = read
        self._peek = min(peek, cache.size)
        self._rest = memoryview(b"")
        self._ended = False
        self._closed = False

    def __aiter__(self) -> Gather[T]:
        return self

    async def __anext__(self) -> tuple[Buffer[T], int]:
        if self._closed:
            raise anyio.ClosedResourceError("the stream was closed, or failed within a buffer")
        if self._peek:
            await self._load(self._peek)
            if self._ended:
                raise StopAsyncIteration
        buf = await self._cache.alloc()
        self._closed = True  # for good, unless the buffer is filled
        try:
            nbytes = await self._fill(buf)
        except BaseException as exc:  # what a debug letter finds must not hide that, which may be a cancellation
            buf.__exit__(type(exc), exc, exc.__traceback__)
            raise
        self._peek = self._peek or 1  # from now on there is something before a buffer is taken
        self._closed = False
        if not nbytes:
            buf.free()
            raise StopAsyncIteration
        return buf, nbytes

    async def aclose(self) -> None:
        """Read no further. The stream stays open, and buffers that were given out stay their owners'.

        Does not suspend; event loop's thread only.
        """
        self._closed = True
        self._rest = memoryview(b"")

    async def _fill(self, buf: Buffer[T]) -> int:
        end = 0
        with buf.pin() as view:
            try:
                while end < len(view):
                    await self._load(len(view) - end)
                    if self._ended:
                        break
                    nbytes = min(len(self._rest), len(view) - end)
                    view[end : end + nbytes] = self._rest[:nbytes]
                    self._rest = self._rest[nbytes:]
                    end += nbytes
            finally:
                del view  # whoever keeps the error must not keep the memory from being used again
        return end

    async def _load(self, most: int) -> None:
        """Have something in ``_rest``, unless the stream has ended."""
        while not self._rest and not self._ended:
            data = await self._read(most)
            self._ended = data is None
            self._rest = memoryview(data or b"").cast("B")


def _of_bytes(stream: ByteReceiveStream) -> Read:
    async def read(most: int) -> bytes | None:
        try:
            return await stream.receive(most)
        except anyio.EndOfStream:
            return None

    return read


def _of_reader(stream: Reader) -> Read:
    async def read(most: int) -> bytes | None:
        return await stream.read(most) or None

    return read


def _of_iterable(stream: AsyncIterable[bytes]) -> Read:
    chunks = aiter(stream)

    async def read(most: int) -> bytes | None:
        return await anext(chunks, None)

    return read


def _of_asgi(receive: Receive) -> Read:
    more = True

    async def read(most: int) -> bytes | None:
        nonlocal more
        if not more:
            return None
        message = await receive()
        if message["type"] == "http.disconnect":
            raise anyio.BrokenResourceError("the client disconnected before the end of the body")
        if message["type"] != "http.request":
            raise ConfigError("stream", message["type"], "it must be the receive of an HTTP request")
        more = message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    return read
