"""A thread that answers whoever connects to a Unix socket, also while the event loop is blocked.

It answers one connection after another: the whole answer, then the end. A client that does not read costs the
others a second at most.

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


class Answers:
    """The thread. Made with the socket in place, before anybody is told of it."""

    def __init__(self, path: str | os.PathLike[str], answer: Callable[[], bytes]) -> None:
        self._answer = answer
        self._path = Path(path)
        self._listener = unix.listen(path)
        self._inode = self._path.stat().st_ino
        self._stopped, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="aslab stats", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering. Blocks until the thread has ended: as long as a client may take."""
        self._stop.close()
        self._thread.join()
        self._stopped.close()
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:  # else another service has taken the place
                self._path.unlink()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stopped, selectors.EVENT_READ)
            while all(key.fileobj is not self._stopped for key, _ in selector.select()):
                try:
                    sock = unix.accept(self._listener)
                except BlockingIOError:  # nobody, or gone already
                    continue
                except OSError as exc:  # no descriptor is left, perhaps
                    log.warning("a client of the statistics could not be accepted: %s", exc)
                    time.sleep(0.1)
                    continue
                with sock:
                    self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        if not unix.ours(sock):
            log.warning("a client of the statistics was refused: it is another user's")
            return
        try:
            answer = self._answer()
            sock.settimeout(PATIENCE)
            sock.sendall(answer)
        except OSError:  # the client is gone, or slow
            pass
        except Exception:  # a bug here must not end the thread, which others rely on
            log.exception("statistics could not be answered")


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
