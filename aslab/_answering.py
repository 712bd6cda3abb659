"""A thread that answers whoever connects to a Unix socket, also while the event loop is blocked.

A client may send a line, its request; one that sends nothing is answered as if that were empty. All who are
connected are answered side by side: the whole answer, then the end. A client that does not read costs the others
nothing, and is dropped after a second.

Always true:

    1. the thread runs no longer than the block of `answering`, and the path is removed with it
    2. a request is performed only if its line came to the end, and only if its client is still there: one that has
       given up does not see its request performed later
    3. however many clients ask by the empty request at once, that is answered once for all of them
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
SILENCE = 0.25
"""Seconds that a client has to send its request; one that has sent nothing is answered then."""
LONGEST = 200
"""Bytes of a request, at most."""
AT_ONCE = 128
"""Clients that are taken in one turn, at most: those that keep coming must not keep the others from an answer."""


class _Client:
    """A connection: what it has asked so far, and then what it has still to get.

    :param answer: makes the answer to a request
    """

    def __init__(self, sock: socket.socket, answer: Callable[[str], bytes]) -> None:
        self.until: float = time.monotonic() + SILENCE
        """When its time to ask is over, and then its time to take the answer."""
        self.asked: bool = False
        """Whether its answer is being sent."""
        self._sock = sock
        self._answer = answer
        self._request = b""
        self._rest = memoryview(b"")

    def read(self) -> bool:
        """Read what is there of its request. Returns whether that is all of it: a line, or the end without any."""
        try:
            piece = self._sock.recv(LONGEST)
        except BlockingIOError:
            return False
        self._request += piece
        whole = b"\n" in self._request
        if len(self._request) > LONGEST or (self._request and not piece and not whole):
            raise ConnectionAbortedError("it is no request")
        return whole or not piece

    @property
    def silent(self) -> bool:
        """Whether it has sent nothing. Part of a request is none: it might be another one."""
        return not self._request

    def answer(self) -> None:
        """Make its answer to what it has asked.

        :raises OSError: if it is gone; nothing was done then
        """
        self._sock.send(b"")  # sends nothing, but fails if the other end is closed
        line = self._request.partition(b"\n")[0]
        self._rest = memoryview(self._answer(line.decode(errors="replace")))
        self.asked, self.until = True, time.monotonic() + PATIENCE

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

    def __init__(self, path: str | os.PathLike[str], answer: Callable[[str], bytes]) -> None:
        self._answer = answer
        self._snapshot: bytes | None = None  # the answer to the empty request, in this turn
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
        sockets = [key.fileobj for key, _ in ready if isinstance(key.fileobj, socket.socket)]
        if self._stopped in sockets:
            return False
        self._snapshot = None  # all that are ready now have asked before it is made
        now = time.monotonic()
        due = [sock for sock, client in self._clients.items() if client.until <= now and sock not in sockets]
        for sock in sockets:
            if sock is self._listener:
                for _ in range(AT_ONCE):
                    if not self._accept(selector):
                        break
            else:
                self._go_on(selector, sock)
        for sock in due:
            self._go_on(selector, sock, due=True)
        return True

    def _answered(self, request: str) -> bytes:
        """The answer to a request. That to the empty one, which takes long, is made once in a turn."""
        if request.strip():
            return self._answer(request)
        if self._snapshot is None:
            self._snapshot = self._answer("")
        return self._snapshot

    def _accept(self, selector: selectors.BaseSelector) -> bool:
        """Take one more client, if it is this user's. Returns whether there may be another."""
        try:
            sock = unix.accept(self._listener)
        except BlockingIOError:  # nobody, or gone already
            return False
        except OSError as exc:  # no descriptor is left, perhaps
            log.warning("a client of the statistics could not be accepted: %s", exc)
            time.sleep(0.1)
            return False
        try:
            ours = unix.ours(sock)
        except OSError:  # the client is gone
            sock.close()
            return True
        if not ours:
            log.warning("a client of the statistics was refused: it is another user's")
            sock.close()
            return True
        self._clients[sock] = _Client(sock, self._answered)
        selector.register(sock, selectors.EVENT_READ)
        return True

    def _go_on(self, selector: selectors.BaseSelector, sock: socket.socket, *, due: bool = False) -> None:
        """Do the next thing for a client: it has sent something, or can be sent something, or its time is over."""
        client = self._clients[sock]
        over = due and (client.asked or not client.silent)
        try:
            if not client.asked and not over and (due or client.read()):
                client.answer()
                selector.modify(sock, selectors.EVENT_WRITE)
            if client.asked and not over:
                over = client.send()
        except OSError:  # the client is gone
            over = True
        except Exception:  # a bug here must not end the thread, which others rely on
            log.exception("statistics could not be answered")
            over = True
        if over:
            del self._clients[sock]
            selector.unregister(sock)
            sock.close()


@asynccontextmanager
async def answering(path: str | os.PathLike[str], answer: Callable[[str], bytes]) -> AsyncIterator[None]:
    """Answer connections to ``path`` for the time of a block.

    :param answer: makes each answer to a request, in the thread
    :raises FileExistsError: if something listens at ``path`` already, or something else is there
    """
    answers = Answers(path, answer)
    answers.start()
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(answers.stop, limiter=anyio.CapacityLimiter(1))
