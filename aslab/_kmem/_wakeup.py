"""Waking the event loop from anywhere: other threads, signal handlers, finalisers.

A byte through a socket pair is the one way that is safe in all of them, on every event loop, and
never waits: the loop's own thread may be inside any of its data structures when the garbage
collector runs a finaliser there.
"""

from __future__ import annotations

import contextlib
import socket

import anyio
import anyio.lowlevel

AT_ONCE = 32
"""Caches looked after before other tasks have their turn."""


async def take_turns(number: int) -> None:
    """In a loop over all caches, after each, counted from 0: let other tasks have their turn now and then."""
    if number % AT_ONCE == AT_ONCE - 1:
        await anyio.lowlevel.checkpoint()


class Bell:
    """Rung from any thread, at any moment; waited for by one task. Rings before a wait are one."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._rung = False

    def ring(self) -> None:
        """Make `wait` return. What is to be found then must be in place before."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(OSError):  # closed: nobody waits any more
                self._sender.send(b"!")

    async def wait(self) -> None:
        """Suspend until rung."""
        await anyio.wait_readable(self._receiver)
        self._receiver.recv(64)
        # Cleared after the byte is taken: who rings in between needs no byte, since its work is
        # in place already and is about to be looked for.
        self._rung = False

    def __enter__(self) -> Bell:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Later rings do nothing."""
        self._receiver.close()
        self._sender.close()
