"""A thread that answers scrapes, with as few handovers of the interpreter as can be.

Whenever a thread has blocked, in a read for example, it waits until another one hands the interpreter over: up to
5 ms (`sys.getswitchinterval`) where an event loop is always busy. `prometheus_client.start_http_server` blocks
some eight times a scrape: to learn of a connection, to accept it, to start a thread, to read, to send in pieces.
Here a connection is kept, as Prometheus does on its side; a thread for each sleeps in the read, and sends head and
body by one call. So a scrape waits for the interpreter once. ``aslab bench scrape`` compares them.

Always true: no thread and no connection lives longer than the block of `serve_metrics`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread
from prometheus_client.exposition import choose_encoder

from .._checks import whole_number

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

log = logging.getLogger("aslab")

MOST = 16
"""Connections at a time; one more is closed at once."""


class _Handler(BaseHTTPRequestHandler):
    """One connection, from its first request to its end."""

    protocol_version = "HTTP/1.1"  # connections are kept
    server: Any

    def do_GET(self) -> None:
        """Answer a scrape, whatever its path is."""
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        status = "200 OK"
        try:
            body = encode(self.server.registry)
        except Exception:  # of a collector, whose bug it is
            log.exception("the metrics could not be collected")
            status, body, kind = "500 Internal Server Error", b"", "text/plain"
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.wfile.write(head.encode() + body)

    def log_message(self, *args: Any) -> None:
        """Log nothing of what clients do."""


class _Server:
    """The listener, its thread, and one for each connection."""

    def __init__(self, registry: Collector, port: int, host: str) -> None:
        self.registry = registry
        self._listener = socket.create_server((host, port))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._closed = False
        self._lock = threading.Lock()  # of `_open`
        self._open: dict[socket.socket, threading.Thread] = {}
        self._thread = threading.Thread(target=self._accept, name="aslab metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End all threads. Blocks until the scrapes under way are answered."""
        self._closed = True
        with contextlib.suppress(OSError), socket.create_connection(self.address):  # it sleeps in `accept`
            self._thread.join()
        self._listener.close()
        with self._lock:
            left = dict(self._open)
        for sock in left:
            with contextlib.suppress(OSError):  # the client has gone
                sock.shutdown(socket.SHUT_RD)
        for thread in left.values():
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as exc:  # no descriptor is left, perhaps
                log.warning("a client of the metrics could not be accepted: %s", exc)
                threading.Event().wait(0.1)
                continue
            if self._closed:
                sock.close()
                return
            with self._lock:
                full = len(self._open) >= MOST
                if not full:
                    thread = threading.Thread(target=self._answer, args=(sock,), name="aslab scrape", daemon=True)
                    self._open[sock] = thread
            if full:
                sock.close()
            else:
                thread.start()

    def _answer(self, sock: socket.socket) -> None:
        try:
            with sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # so that a dead client is noticed
                # Else the last piece of an answer waits for an acknowledgement, which may be delayed by 40 ms.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _Handler(sock, sock.getpeername(), self)  # type: ignore[arg-type]
        except OSError:  # the client is gone
            pass
        finally:
            with self._lock:
                del self._open[sock]


@asynccontextmanager
async def serve_metrics(registry: Collector, port: int, *, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Answer Prometheus, for the time of an ``async with`` block.

    A thread of its own answers each connection, so also while the event loop is blocked. Entering does not
    suspend; leaving does, until the scrapes under way are answered. Anybody who can connect is answered, whatever
    the path: listen where only Prometheus does.

    :param port: 0 is any that is free; the block gets its number
    :param host: an address of this machine to listen at; ``0.0.0.0`` is all of them
    :raises ConfigError: if ``port`` is none
    :raises OSError: if it is in use
    """
    whole_number("port", port, 0, 65535)
    server = _Server(registry, port, host)
    try:
        yield server.address[1]
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(server.stop, limiter=anyio.CapacityLimiter(1))
