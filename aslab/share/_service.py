"""The service: it shares buffers of its caches with clients, and frees each when the last of them lets go."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal

from .._allocator import Allocator
from .._cache import Cache
from .._errors import ConfigError
from .._fastpath import Buffer
from . import _sockets as sockets
from ._descriptor import Descriptor
from ._ledger import Ledger
from ._peer import Channel, Member, Peer
from ._places import Places
from ._wire import Garbage, Kind, Message, encode, encode_frame

log = logging.getLogger("aslab")

LOOK = 1.0
"""Seconds between looks for slabs that went back."""
MOST_RECEIVERS = 256
"""Receivers that one client may have."""
_abandoned: list[Buffer[Any]] = []
"""Buffers whose service closed while a client held them. They stay allocated: nobody tells when it lets go."""


class Shared:
    """The producer's own claim on a buffer that it shares. Made by `Service.share`; usable as a ``with`` block."""

    def __init__(self, ledger: Ledger, descriptor: Descriptor) -> None:
        self._ledger = ledger
        self.descriptor: Descriptor = descriptor

    def release(self) -> None:
        """Let go: the buffer is freed when no client holds it any more. A second time does nothing.

        Does not suspend; event loop's thread only.
        """
        self._ledger.release(self, self.descriptor.generation)

    def __enter__(self) -> Shared:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release()


class Service:
    """Shares buffers with the clients on one socket. Made by `serve`. Event loop's thread only."""

    def __init__(self, of: Allocator | Cache[Any] | Iterable[Cache[Any]], path: str | os.PathLike[str]) -> None:
        self._places = Places(of if isinstance(of, Allocator) else (of,) if isinstance(of, Cache) else tuple(of))
        self.listener: socket.socket = sockets.listen(path)
        self._path = Path(path)
        self._inode = self._path.stat().st_ino
        self._peers: set[Peer] = set()
        self._ledger = Ledger()
        self._channels: dict[str, Channel] = {}
        self._changed: anyio.Event | None = None  # made by those who wait
        self.portal: BlockingPortal = BlockingPortal()
        """For threads that send."""
        self.closed: bool = False

    @property
    def clients(self) -> tuple[Peer, ...]:
        """Those that are connected."""
        return tuple(self._peers)

    @property
    def shared(self) -> int:
        """How many buffers are shared, or were and are still held."""
        return len(self._ledger)

    async def client(self, pid: int) -> Peer:
        """The client in that process; suspends until it has connected."""
        while True:
            for peer in self._peers:
                if peer.pid == pid:
                    return peer
            await self.change()

    def share(self, buf: Buffer[Any], nbytes: int | None = None) -> Shared:
        """Take over a buffer; who has its descriptor may claim it until the producer releases what this returns.

        From now on the service frees the buffer, nobody else. Write to it before, not after.

        :param nbytes: share the first so many bytes only
        :raises ConfigError: if it is not in shared memory, not of these caches, or shared already
        """
        descriptor = self._enter(buf, nbytes)
        shared = Shared(self._ledger, descriptor)
        self._ledger.give(shared, descriptor)
        return shared

    def hand_over(self, buf: Buffer[Any], *clients: Peer, nbytes: int | None = None) -> Descriptor:
        """Take over a buffer and give each of these clients a claim on it; the producer keeps none.

        A client that goes loses its claim, even if it never came to attach the buffer. One that is named twice gets
        one claim.

        :raises ConfigError: as `share`, or if there is no client
        """
        if not clients:
            raise ConfigError("clients", clients, "there must be one at least")
        descriptor = self._enter(buf, nbytes)
        for peer in dict.fromkeys(clients):
            self._grant(peer, descriptor, 0)
        self._ledger.drop_unheld(descriptor.generation)  # they all went just now
        return descriptor

    # -- for channels

    def channel(self, name: str) -> Channel:
        """The channel of that name."""
        return self._channels.setdefault(name, Channel(name))

    def send(self, channel: Channel, buf: Buffer[Any], nbytes: int | None) -> Descriptor:
        """Take over a buffer and give it to all receivers of a channel."""
        descriptor = self._enter(buf, nbytes)
        given = False
        for member in channel.members:
            peer = member.peer
            if self._give(peer, descriptor):
                member.frames[descriptor.generation] = member.sent
                member.sent += 1
                peer.send(encode_frame(member.number, descriptor))
                given = True
        if not given:
            self._ledger.drop_unheld(descriptor.generation)
        return descriptor

    def end(self, channel: Channel) -> None:
        """No more frames."""
        channel.ended = True
        for member in channel.members:
            member.peer.send(encode(Message(Kind.END, member.number)))
        self._note_change()

    async def change(self) -> None:
        """Suspend until a client came, went, joined a channel or released something."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def _note_change(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    # -- what is shared

    def _enter(self, buf: Buffer[Any], nbytes: int | None) -> Descriptor:
        if self.closed:
            raise anyio.ClosedResourceError("the service is closed")
        size = len(buf)
        if nbytes is not None:
            if not 0 < nbytes <= size:
                raise ConfigError("nbytes", nbytes, f"it must be from 1 to {size}")
            size = nbytes
        place = self._places.find(buf)
        return self._ledger.enter(buf, place.number, place.offset, size)

    def _grant(self, peer: Peer, descriptor: Descriptor, request: int) -> bool:
        given = self._give(peer, descriptor)
        if given:
            peer.send(encode(Message(Kind.GRANTED, request, descriptor)))
        return given

    def _give(self, peer: Peer, descriptor: Descriptor) -> bool:
        """A claim for a client, which knows the slab then. Tell it of the claim next."""
        if peer.gone or not self._ledger.give(peer, descriptor):
            return False
        number = descriptor.slab
        if number not in peer.slabs:
            segment = self._places.segment(number)
            peer.slabs.add(number)
            peer.send(encode(Message(Kind.SLAB, number, size=segment.size)), segment)
        return True

    # -- what clients say

    def hear(self, peer: Peer) -> bool:
        """Take in what a client has sent; False if that is nothing. One that sends garbage is told and dropped."""
        data = peer.receive()
        if data is None:
            return False
        try:
            releases = peer.decoder.releases(data)
            if releases is not None:
                self._let_go(peer, releases)
            else:
                for message in peer.decoder.feed(data):
                    self._handle(peer, message)
        except Garbage as exc:
            log.warning("process %d is dropped: it sent %s", peer.pid, exc)
            peer.error(str(exc))
            peer.drop()
        return True

    def _handle(self, peer: Peer, message: Message) -> None:
        kind, number = message.kind, message.number
        if kind is Kind.CLAIM:
            if not self._grant(peer, message.place, number):
                peer.send(encode(Message(Kind.REFUSED, number)))
        elif kind is Kind.RELEASE:
            self._let_go(peer, [(number, generation) for generation in message.generations])
        elif kind is Kind.JOIN:
            self._join(peer, number, message.text)
        elif kind is Kind.LEAVE and number in peer.members:
            self._left(peer.members.pop(number), message.size)
        else:
            raise Garbage(f"{kind.name} is not for a client to say")

    def _let_go(self, peer: Peer, releases: Sequence[tuple[int, int]]) -> None:
        # What is freed last is allocated first: let that be what was read first. What has just been read is in the
        # cache of the reader's processor, and writing there takes up to three times as long.
        for receiver, generation in reversed(releases):
            if not self._ledger.release(peer, generation):
                raise Garbage("a release of what it does not hold")
            member = peer.members.get(receiver)
            if member is not None:
                member.frames.pop(generation, None)
        self._note_change()

    def _join(self, peer: Peer, number: int, name: str) -> None:
        if number in peer.members or len(peer.members) >= MOST_RECEIVERS:
            raise Garbage("a receiver too many")
        channel = self.channel(name)
        peer.members[number] = member = Member(peer, number, channel)
        channel.members.append(member)
        if channel.ended or self.closed:
            peer.send(encode(Message(Kind.END, number)))
        self._note_change()

    def _left(self, member: Member, seen: int) -> None:
        """It releases what it has seen; the rest is on its way to nobody."""
        self._leave(member)  # first: one that lies about its frames is dropped, and must hold up no sender then
        self._let_go(member.peer, [(0, one) for one, number in member.frames.items() if number >= seen])

    def _leave(self, member: Member) -> None:
        member.channel.members.remove(member)
        self._note_change()

    def _lose(self, peer: Peer) -> None:
        peer.gone = True
        peer.sock.close()
        self._peers.discard(peer)
        for member in peer.members.values():
            self._leave(member)
        self._ledger.lose(peer)
        self._note_change()

    # -- its tasks

    async def run(self) -> None:
        """Serve until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look)
            while True:
                await anyio.wait_readable(self.listener)
                try:
                    sock = sockets.accept(self.listener)
                except BlockingIOError:
                    continue
                except OSError as exc:  # no descriptor left, or the client is gone already
                    log.warning("a client could not be accepted: %s", exc)
                    await anyio.sleep(0.1)
                    continue
                tasks.start_soon(self._serve, sock)

    async def _serve(self, sock: socket.socket) -> None:
        peer = Peer(sock)
        if peer.uid != os.geteuid():
            log.warning("a client of another user was refused: %d", peer.uid)
            sock.close()
            return
        self._peers.add(peer)
        self._note_change()
        try:
            with peer.scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(peer.write)
                    while not peer.gone:
                        await anyio.wait_readable(sock)
                        self.hear(peer)
                    tasks.cancel_scope.cancel()
        finally:
            self._lose(peer)

    async def _look(self) -> None:
        while True:
            await anyio.sleep(LOOK)
            self._ledger.free()
            for number in self._places.forget_gone():
                for peer in self._peers:
                    if number in peer.slabs:
                        peer.slabs.discard(number)
                        peer.send(encode(Message(Kind.GONE, number)))

    def shut(self) -> None:
        """No new clients, no more frames."""
        self.closed = True
        for channel in self._channels.values():
            self.end(channel)
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    async def drain(self) -> None:
        """Suspend until no client holds anything."""
        while any(self._ledger.held(peer) for peer in self._peers):
            await self.change()

    def close(self) -> str:
        """Keep what clients hold from being freed: they are cut off next. Returns what there is to warn of."""
        left = [peer for peer in self._peers if self._ledger.held(peer)]
        kept = self._ledger.abandon() if left else []
        _abandoned.extend(kept)
        if not kept:
            return ""
        return f"a service was closed while {len(left)} clients held {len(kept)} buffers: they stay allocated"


@asynccontextmanager
async def serve(
    of: Allocator | Cache[Any] | Iterable[Cache[Any]], path: str | os.PathLike[str], *, linger: float = 1.0
) -> AsyncIterator[Service]:
    """Share buffers with other processes of this user, on a Unix socket at ``path``, for the time of a block.

    Leave the block before the allocator's. On leaving it, receivers are told that no more frames come, and clients
    have ``linger`` seconds to let go. What they hold then stays allocated as long as this process lives. Entering
    does not suspend, leaving does; event loop's thread only.

    :param of: an allocator or caches whose slabs (and emergency objects) come from `aslab.backends.SharedMemory`
    :raises FileExistsError: if a service listens at ``path``, or something else is there
    """
    service = Service(of, path)
    raised: BaseException | None = None
    warning = ""
    try:
        async with anyio.create_task_group() as tasks, service.portal:
            tasks.start_soon(service.run)
            try:
                yield service
            except BaseException as exc:  # re-raised below, outside of the task group
                raised = exc
            service.shut()
            with anyio.move_on_after(linger, shield=True):
                await service.drain()
            warning = service.close()
            tasks.cancel_scope.cancel()
    finally:
        service.listener.close()
    try:
        if warning:
            warnings.warn(warning, ResourceWarning, stacklevel=3)
    finally:
        if raised is not None:
            raise raised
