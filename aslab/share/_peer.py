"""One client, as the service sees it: its socket, what waits to be sent, what it knows and holds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from ..backends import Segment
from . import _sockets as sockets
from ._wire import Decoder, Kind, Message, encode

if TYPE_CHECKING:
    import socket

MOST_QUEUED = 1000
"""Messages that a client may leave unread beyond what its socket holds; then it is dropped."""


@dataclass(eq=False, slots=True)
class Channel:
    """A name that frames go out under, and the receivers that want them."""

    name: str
    members: list[Member] = field(default_factory=list)
    ended: bool = False


@dataclass(eq=False, slots=True)
class Member:
    """One receiver of one client."""

    peer: Peer
    number: int
    channel: Channel
    sent: int = 0
    """How many frames it was sent ever."""
    frames: dict[int, int] = field(default_factory=dict)
    """What it was sent and has not released: by generation, the number of the frame. Each receiver of a client has
    its own, as each of them is sent a claim on the same buffer."""


class Peer:
    """A connected client. Made by the service, which lists them in `Service.clients`."""

    pid: int
    """Its process; 0 where the system does not say."""
    uid: int
    """Its user."""

    def __init__(self, sock: socket.socket) -> None:
        try:
            self.pid, self.uid = sockets.peer(sock)
        except OSError:  # gone already
            self.pid, self.uid = 0, -1
        self.sock = sock
        self.slabs: set[int] = set()
        """The slabs whose file it was sent."""
        self.members: dict[int, Member] = {}
        """Its receivers, by its own numbers."""
        self.scope: anyio.CancelScope = anyio.CancelScope()
        """Cancelled to drop it."""
        self.gone: bool = False
        self.decoder: Decoder = Decoder()
        """Of what it sends."""
        self._out: deque[tuple[bytes, Segment | None]] = deque()
        self._stuck = anyio.Event()

    def __repr__(self) -> str:
        return f"<Peer, process {self.pid}>"

    def send(self, data: bytes, segment: Segment | None = None) -> None:
        """Send now what goes, and the rest when the client reads. One that does not read for long is dropped."""
        if self.gone:
            return
        if segment is None and not self._out:
            try:
                sent = sockets.send(self.sock, data)
            except OSError:  # it has no room, or is gone: `_flush` will see
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        self._out.append((data, segment))
        self._flush()
        if len(self._out) > MOST_QUEUED:
            self.drop()

    def drop(self) -> None:
        """Close the connection, soon."""
        self.gone = True
        self.scope.cancel()

    async def write(self) -> None:
        """Send what was left, whenever the socket has room."""
        while True:
            await self._stuck.wait()
            await anyio.wait_writable(self.sock)
            self._stuck = anyio.Event()
            self._flush()

    def receive(self) -> bytes | None:
        """What it has sent, if anything; it is dropped if it has closed."""
        if self.gone:
            return None
        try:
            data = self.sock.recv(sockets.CHUNK)  # descriptors that it sends are dropped by the kernel
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            self.drop()
            return None
        return data

    def error(self, text: str) -> None:
        """Tell it why it is dropped."""
        self.send(encode(Message(Kind.ERROR, text=text)))

    def _flush(self) -> None:
        while self._out:
            data, segment = self._out.popleft()
            try:
                if segment is None:
                    sent = sockets.send(self.sock, data)
                else:
                    with segment.descriptor() as fd:
                        sent = sockets.send(self.sock, data, fd)
            except BlockingIOError:
                self._out.appendleft((data, segment))
                self._stuck.set()
                return
            except (OSError, ValueError):  # it is gone, or has let go of a slab before it was sent
                self.drop()
                return
            if sent < len(data):
                self._out.appendleft((data[sent:], None))
