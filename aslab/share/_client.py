"""What a consumer opens: a client for an event loop, or one that blocks."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

import anyio
from anyio import to_thread

from . import _sockets as sockets
from ._claim import Claim
from ._descriptor import Descriptor
from ._link import Link


class _Connection:
    def __init__(self, link: Link) -> None:
        self._link = link

    def close(self) -> None:
        """Disconnect: all claims are lost, and the memory of those that are held may be overwritten.

        Does not suspend. Any call that waits ends with `DisconnectedError`.
        """
        if not self._link.lost:
            self._link.flush()
            if isinstance(self, Client):
                anyio.notify_closing(self._link.sock)
            self._link.lose("this client was closed")


class Client(_Connection):
    """A connection for one event loop, of any number of tasks. Made by `connect`; usable as ``async with``."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._reading = anyio.Lock()

    async def attach(self, descriptor: Descriptor, *, writable: bool = False) -> Claim:
        """Claim a buffer. Suspends for a round trip, unless it was handed over to this client.

        If cancelled, no claim is left behind.

        :param writable: the view may be written to; the producer and other clients see that
        :raises RefusedError: if it is not shared any more, or never was
        :raises DisconnectedError: if the service is gone
        """
        number = self._link.ask(descriptor)
        try:
            await self._until(lambda: number in self._link.answers)
            return self._link.answer(number, descriptor, writable=writable)
        finally:
            self._link.forget(number)

    def receiver(self, channel: str) -> Receiver:
        """Receive the frames of a channel from now on. The channel need not have a sender yet."""
        return Receiver(self._link, self._link.join(channel), self._until)

    async def _until(self, ready: Callable[[], bool]) -> None:
        link = self._link
        while not ready():
            if link.lost:
                raise link.lose("")
            async with self._reading:
                if ready() or link.feed() or link.lost:
                    continue
                link.flush()
                await anyio.wait_readable(link.sock)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class _Inbox:
    """The frames of one channel."""

    def __init__(self, link: Link, number: int) -> None:
        self._link = link
        self._number = number

    def close(self) -> None:
        """Receive no more; what was not read goes back. Closing twice does nothing."""
        self._link.leave(self._number)

    def _ready(self) -> bool:
        """Whether `_next` returns or raises at once for good."""
        frames = self._link.frames.get(self._number)
        return bool(frames) or frames is None or self._number in self._link.ended

    def _next(self, *, writable: bool) -> Claim:
        frames = self._link.frames.get(self._number)
        if frames is None:
            raise anyio.ClosedResourceError("the receiver is closed")
        if not frames:
            raise anyio.EndOfStream
        return self._link.claim(frames.popleft(), writable=writable, receiver=self._number)


class Receiver(_Inbox):
    """The frames of one channel, as claims, in order: ``async for claim in receiver``. Release each."""

    def __init__(
        self, link: Link, number: int, until: Callable[[Callable[[], bool]], Coroutine[Any, Any, None]]
    ) -> None:
        super().__init__(link, number)
        self._until = until

    async def receive(self, *, writable: bool = False) -> Claim:
        """The next frame. Suspends until there is one; may be cancelled, and loses nothing then.

        :raises anyio.EndOfStream: if the sender is closed and all is read
        :raises DisconnectedError: if the service is gone
        """
        if not self._ready():
            await self._until(self._ready)
        return self._next(writable=writable)

    def __aiter__(self) -> Receiver:
        return self

    async def __anext__(self) -> Claim:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


class BlockingClient(_Connection):
    """As `Client`, for programs without an event loop. Made by `connect_blocking`; usable as ``with``.

    One thread at a time waits; claims are released from any thread.
    """

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._reading = threading.RLock()
        self._poll = select.poll()
        self._poll.register(link.sock, select.POLLIN)
        link.sock.setblocking(True)  # whoever does not want to wait says so in each call

    def attach(self, descriptor: Descriptor, *, writable: bool = False, timeout: float | None = None) -> Claim:
        """As `Client.attach`.

        :raises TimeoutError: if no answer came within ``timeout`` seconds
        """
        with self._reading:
            number = self._link.ask(descriptor)
            try:
                self._until(lambda: number in self._link.answers, timeout)
                return self._link.answer(number, descriptor, writable=writable)
            finally:
                self._link.forget(number)

    def receiver(self, channel: str) -> BlockingReceiver:
        """As `Client.receiver`."""
        return BlockingReceiver(self._link, self._link.join(channel), self._until)

    def _until(self, ready: Callable[[], bool], timeout: float | None) -> None:
        link, end = self._link, None if timeout is None else time.monotonic() + timeout
        with self._reading:
            while not ready():
                if link.lost:
                    raise link.lose("")
                link.flush()
                if end is None:
                    link.feed(wait=True)
                elif self._poll.poll(max(0.0, end - time.monotonic()) * 1000):
                    link.feed()
                else:
                    raise TimeoutError(f"nothing came within {timeout:g} s")

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class BlockingReceiver(_Inbox):
    """As `Receiver`, for programs without an event loop: ``for claim in receiver``."""

    def __init__(self, link: Link, number: int, until: Callable[[Callable[[], bool], float | None], None]) -> None:
        super().__init__(link, number)
        self._until = until

    def receive(self, *, writable: bool = False, timeout: float | None = None) -> Claim:
        """As `Receiver.receive`.

        :raises TimeoutError: if none came within ``timeout`` seconds
        """
        if not self._ready():
            self._until(self._ready, timeout)
        return self._next(writable=writable)

    def __iter__(self) -> BlockingReceiver:
        return self

    def __next__(self) -> Claim:
        try:
            return self.receive()
        except anyio.EndOfStream:
            raise StopIteration from None


async def connect(path: str | os.PathLike[str]) -> Client:
    """Connect to the service at ``path``, which must be of the same user. Suspends.

    :raises OSError: if there is none, or it takes no connection for 5 s
    :raises DisconnectedError: if it is another user's
    """
    return Client(Link(await to_thread.run_sync(sockets.connect, path)))


def connect_blocking(path: str | os.PathLike[str]) -> BlockingClient:
    """As `connect`, for programs without an event loop."""
    return BlockingClient(Link(sockets.connect(path)))
