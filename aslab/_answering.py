"""A thread that answers whoever connects to a Unix socket, also while the event loop is blocked.

All who are connected are answered side by side: the whole answer, then the end. A client that does not read costs
the others nothing, and is dropped after a second.

Always true: the thread runs no longer than the block of `answering`, and the path is removed with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio import to_thread

from . import _unix as unix

log = logging.getLogger("aslab")

PATIENCE = 1.0
"""Seconds that a client has to take its answer."""


class _Client:
    """A connection, and what it has still to get."""

    def __init__(self, sock: socket.socket, answer: bytes) -> None:
        self.until: float = time.monotonic() + PATIENCE
        self._sock = sock
        self._rest = memoryview(answer)

    def send(self) -> bool:
        """Send what goes now. Returns whether that was the last of it, or the client is gone."""
        try:
            while self._rest:
                self._rest = self._rest[self._sock.send(self._rest) :]
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True


class Answers:
    """The thread. Made with the socket in place, before anybody is told of it."""

    def __init__(self, path: str | os.PathLike[str], answer: Callable[[], bytes]) -> None:
        self._answer = answer
        self._path = Path(path)
        self._listener = unix.listen(path)
        self._inode = self._path.stat().st_ino
        self._stopped, self._stop = unix.pair()
        self._clients: dict[socket.socket, _Client] = {}
        self._thread = threading.Thread(target=self._run, name="aslab stats", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering; a client that has not yet got all gets no more. Blocks until the thread has ended."""
        self._stop.send(b"\0")  # closing it tells nothing while a child of fork has a copy
        self._thread.join()
        for sock in (self._stop, self._stopped, self._listener):
            sock.close()
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:  # else another service has taken the place
                self._path.unlink()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stopped, selectors.EVENT_READ)
            while self._turn(selector):
                pass
            for sock in self._clients:
                sock.close()

    def _turn(self, selector: selectors.BaseSelector) -> bool:
        """Wait for something, and do it. Returns whether to go on."""
        first = min((client.until for client in self._clients.values()), default=None)
        ready = selector.select(None if first is None else max(0.0, first - time.monotonic()))
        done = list[socket.socket]()
        for key, _ in ready:
            if key.fileobj is self._stopped:
                return False
            if key.fileobj is self._listener:
                self._accept(selector)
            elif isinstance(key.fileobj, socket.socket) and self._clients[key.fileobj].send():
                done.append(key.fileobj)
        now = time.monotonic()
        done += [sock for sock, client in self._clients.items() if client.until <= now and sock not in done]
        for sock in done:
            del self._clients[sock]
            selector.unregister(sock)
            sock.close()
        return True

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            sock = unix.accept(self._listener)
        except BlockingIOError:  # nobody, or gone already
            return
        except OSError as exc:  # no descriptor is left, perhaps
            log.warning("a client of the statistics could not be accepted: %s", exc)
            time.sleep(0.1)
            return
        try:
            if not unix.ours(sock):
                log.warning("a client of the statistics was refused: it is another user's")
            elif not (client := _Client(sock, self._answer())).send():
                selector.register(sock, selectors.EVENT_WRITE)
                self._clients[sock] = client
                return
        except OSError:  # the client is gone
            pass
        except Exception:  # a bug here must not end the thread, which others rely on
            log.exception("statistics could not be answered")
        sock.close()


@asynccontextmanager
async def answering(path: str | os.PathLike[str], answer: Callable[[], bytes]) -> AsyncIterator[None]:
    """Answer connections to ``path`` for the time of a block.

    :param answer: makes each answer, in the thread
    :raises FileExistsError: if something listens at ``path`` already, or something else is there
    """
    answers = Answers(path, answer)
    answers.start()
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(answers.stop, limiter=anyio.CapacityLimiter(1))
