"""A thread that answers scrapes, with as few handovers of the interpreter as can be.

Whenever a thread has blocked, in a read for example, it waits until another one hands the interpreter over: up to
5 ms (`sys.getswitchinterval`) where an event loop is always busy. `prometheus_client.start_http_server` blocks
some eight times a scrape: to learn of a connection, to accept it, to start a thread, to read, to send in pieces.
Here a connection is kept, as Prometheus does on its side, and one thread sleeps until any of them has something to
read. No other call of it blocks, and one sends head and body. So a scrape waits for the interpreter once.
``aslab bench scrape`` compares them.

CPython's 5 ms begin anew whenever the other thread lets go for a moment. A loop that is always busy does so once a
turn, so where its turns are shorter no server's thread gets on: `sys.setswitchinterval` has to be shorter still.

One thread is enough: rendering needs the interpreter, which only one has at a time.

Always true: the thread and its connections live no longer than the block of `serve_metrics`, whatever clients do;
a child made by fork has none of them.
"""

from __future__ import annotations

import contextlib
import logging
import re
import selectors
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from .. import _unix as unix
from .._checks import whole_number
from ._http import answer_to, refusal

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

log = logging.getLogger("aslab")

MOST = 16
"""Connections at a time. For one more, that which has done nothing the longest is closed."""
PATIENCE = 10.0
"""Seconds that a client has to send a request, and to take its answer. So long Prometheus gives a scrape."""
IDLE = 600.0
"""Seconds that a connection is kept with nothing asked. Prometheus closes its own after 300."""
GRACE = 1.0
"""Seconds that a client has to take its answer when the block ends."""
LONGEST = 2**14
"""Bytes of a request, at most."""
AGAIN = 0.1
"""Seconds until the next try when no connection could be accepted."""

_END = re.compile(rb"\r?\n\r?\n")
"""Of a request, which has no body."""


class _Client:
    """A connection: what has come of its next request, and what is left to send of its last answer."""

    def __init__(self, sock: socket.socket, registry: Collector) -> None:
        self.answering: bool = False
        """Whether something is left to send."""
        self._sock = sock
        self._registry = registry
        self._asked = b""
        self._rest = memoryview(b"")
        self._keep = True
        self._begin(PATIENCE)

    def _begin(self, limit: float) -> None:
        self.since: float = time.monotonic()
        """When it last got on."""
        self.until: float = self.since + limit
        """When it is closed, unless it gets on."""

    @property
    def events(self) -> int:
        """What it waits for. A request that has come already is the next one's turn, after those of others."""
        return selectors.EVENT_WRITE if self.answering or self._complete else selectors.EVENT_READ

    @property
    def _complete(self) -> bool:
        return _END.search(self._asked) is not None or len(self._asked) > LONGEST

    def go_on(self) -> bool:
        """Read, answer, send: what goes without blocking, and one answer at most. Returns whether it is the end.

        :raises OSError: if the client is gone
        """
        with contextlib.suppress(BlockingIOError):
            if not self.answering and not self._complete and not self._read():
                return True
            if not self.answering and self._complete:
                self._answer()
            while self._rest:
                self._rest = self._rest[self._sock.send(self._rest) :]
            if self.answering:
                self.answering = False
                self._begin(PATIENCE if self._asked else IDLE)
                return not self._keep
        return False

    def _read(self) -> bool:
        piece = self._sock.recv(2**16)
        if not self._asked:
            self._begin(PATIENCE)
        self._asked = (self._asked + piece).lstrip(b"\r\n")  # an empty line before a request means nothing
        return bool(piece)

    def _answer(self) -> None:
        end = _END.search(self._asked)
        if end is None or end.start() > LONGEST:
            answer = refusal("431 Request Header Fields Too Large", f"a request has at most {LONGEST} bytes")
        else:
            answer = answer_to(self._asked[: end.start()], self._registry)
            self._asked = self._asked[end.end() :].lstrip(b"\r\n")
        self._rest, self._keep = memoryview(answer.data), answer.keep
        self.answering = True
        self._begin(PATIENCE)


class _Server:
    """The thread, with all that it needs to run and to be stopped: later, descriptors may be short."""

    def __init__(self, registry: Collector, port: int, host: str) -> None:
        self._registry = registry
        self._clients: dict[socket.socket, _Client] = {}
        self._ending = False
        self._again: float | None = None
        """When to accept again, after that has failed."""
        self._short = False
        """Whether that fails again and again, which is logged once."""
        with contextlib.ExitStack() as undo:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = undo.enter_context(socket.create_server((host, port), family=family))
            self._listener.setblocking(False)
            unix.close_in_child(self._listener)
            self.port: int = self._listener.getsockname()[1]
            self._stopped, self._stop = (undo.enter_context(sock) for sock in unix.pair())
            self._selector = undo.enter_context(selectors.DefaultSelector())
            self._selector.register(self._stopped, selectors.EVENT_READ)
            self._selector.register(self._listener, selectors.EVENT_READ)
            thread = self._thread = threading.Thread(target=self._run, name="aslab metrics", daemon=True)
            thread.start()
            self._undo = undo.pop_all()

    def stop(self) -> None:
        """End the thread. Blocks until the scrapes under way are answered, or their clients have had `GRACE`."""
        with contextlib.suppress(OSError):  # in a child made by fork, it is closed
            self._stop.send(b"\0")
        self._thread.join()
        self._undo.close()

    def _run(self) -> None:
        while self._clients or not self._ending:
            self._turn()

    def _turn(self) -> None:
        """Wait for something, and do it."""
        times = [client.until for client in self._clients.values()]
        if self._again is not None:
            times.append(self._again)
        ready = self._selector.select(max(0.0, min(times) - time.monotonic()) if times else None)
        sockets = {key.fileobj for key, _ in ready}
        for sock in list(self._clients):
            if sock in sockets:
                self._go_on(sock)
        if self._stopped in sockets:  # what has come before is answered
            self._end()
        now = time.monotonic()
        for sock, client in list(self._clients.items()):
            if client.until <= now:
                self._close(sock)
        if self._again is not None and self._again <= now and not self._ending:
            self._again = None
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif self._listener in sockets and not self._ending:
            self._accept()

    def _go_on(self, sock: socket.socket) -> None:
        client = self._clients[sock]
        before = client.events
        try:
            over = client.go_on()
        except OSError:  # the client is gone
            over = True
        except Exception:  # a bug here must not end the thread, which others rely on
            log.exception("a scrape could not be answered")
            over = True
        if over or (self._ending and not client.answering):
            self._close(sock)
        elif client.events != before:
            self._selector.modify(sock, client.events)

    def _accept(self) -> None:
        try:
            sock = unix.accept(self._listener)
        except BlockingIOError:  # nobody, or gone already
            return
        except OSError as exc:  # no descriptor is left, perhaps
            self._pause(exc)
            return
        self._short = False
        if len(self._clients) >= MOST:
            self._close(min(self._clients, key=lambda sock: self._clients[sock].since))
        try:
            # Else the last piece of an answer waits for an acknowledgement, which may be delayed by 40 ms.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(sock, selectors.EVENT_READ)
        except OSError:  # the client is gone
            sock.close()
            return
        self._clients[sock] = _Client(sock, self._registry)

    def _pause(self, why: OSError) -> None:
        """Accept nobody for a while: a listener that still has somebody would keep the thread busy."""
        if not self._short:
            log.warning("a client of the metrics could not be accepted: %s", why)
        self._short, self._again = True, time.monotonic() + AGAIN
        self._selector.unregister(self._listener)

    def _end(self) -> None:
        """Accept and read no more."""
        self._ending, self._again = True, None
        self._selector.unregister(self._stopped)
        with contextlib.suppress(KeyError):  # it is paused
            self._selector.unregister(self._listener)
        self._listener.close()
        for sock, client in list(self._clients.items()):
            client.until = min(client.until, time.monotonic() + GRACE)
            if not client.answering:
                self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        del self._clients[sock]
        self._selector.unregister(sock)
        sock.close()


@asynccontextmanager
async def serve_metrics(registry: Collector, port: int, *, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Answer Prometheus, for the time of an ``async with`` block.

    A thread of its own answers, so also while the event loop is blocked; a collector that blocks keeps other
    scrapes waiting. Entering does not suspend; leaving does, until the scrapes under way are answered: a client
    that does not read its answer has a second. Anybody who can connect is answered, whatever the path: listen
    where only Prometheus does. Connections are kept, 16 at most.

    :param port: 0 is any that is free; the block gets its number
    :param host: an address of this machine to listen at; ``0.0.0.0`` is all of them, ``::`` all of IPv6
    :raises ConfigError: if ``port`` is none
    :raises OSError: if it is in use
    :raises RuntimeError: if no thread can be started
    """
    whole_number("port", port, 0, 65535)
    server = _Server(registry, port, host)
    try:
        yield server.port
    finally:
        with anyio.CancelScope(shield=True):
            try:
                await to_thread.run_sync(server.stop, limiter=anyio.CapacityLimiter(1))
            except RuntimeError:  # there is no thread to be had: it has to be in this one
                server.stop()
