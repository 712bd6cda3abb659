"""The client's end of a connection: slabs it has mapped, claims it holds, answers it got. Never waits.

Releases are sent at once, unless frames that have come wait to be read and something was sent in the last half
millisecond: then they gather, so many small frames take few messages. No timer sends them. They go with the next
release that is sent, the 16th at the latest; or as a client sends something, waits or closes. So 15 at most lie
here while a consumer works. Releases may come from any thread, and from a finaliser.
"""

from __future__ import annotations

import _thread
import ctypes
import itertools
import os
import select
import socket
import struct
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from functools import partial

from .._errors import ConfigError
from ..backends._memfd import make_writable, map_shared
from ..backends._protocol import address_of
from . import _sockets as sockets
from ._claim import Claim
from ._descriptor import Descriptor
from ._errors import DisconnectedError, RefusedError
from ._wire import LONGEST, Decoder, Garbage, Kind, Message, encode, encode_release

BATCH, PAUSE = 16, 0.0005
"""While frames wait to be read: releases that are sent together at most, and for how many seconds after something
was sent one more only joins those that gather."""


class _Slab:
    def __init__(self, fd: int, size: int) -> None:
        self.mapping, _ = map_shared(fd, size, writable=False)
        self.size = size
        self.writable = False

    def export(self, place: Descriptor, *, writable: bool) -> ctypes.Array[ctypes.c_ubyte]:
        if writable and not self.writable:
            with memoryview(self.mapping) as whole:
                make_writable(address_of(whole), self.size)
            self.writable = True
        return (ctypes.c_ubyte * place.size).from_buffer(self.mapping, place.offset)


def _wait_for_room(sock: socket.socket) -> None:
    """Block until there is some, or the socket is shut down."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    poll.poll()


class Link:
    """A connection. One thread at a time, except where it says otherwise."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lost: str = ""
        """Why the connection is of no use any more."""
        self.answers: dict[int, Descriptor | None] = {}
        self.frames: dict[int, deque[Descriptor]] = {}
        """What has come, by receiver."""
        self.ended: set[int] = set()
        self._seen: dict[int, int] = {}  # how many have come, by receiver
        self._handed: dict[int, Descriptor] = {}  # claims that were given unasked, by generation
        self._asked: set[int] = set()
        self._numbers = itertools.count(1)
        self._decoder = Decoder()
        self._fds: deque[int] = deque()
        self._slabs: dict[int, _Slab] = {}
        self._held: dict[int, weakref.ref[object]] = {}
        self._released: deque[tuple[int, int]] = deque()  # receivers and generations
        self._out = b""
        self._sending = threading.Lock()
        self._stuck = False  # whether a thread waits for room in the socket; changed under the lock
        self._sent = 0.0  # when something was sent last

    # -- asking

    def ask(self, descriptor: Descriptor) -> int:
        """Ask for a claim, unless it was given already. Returns the number of the answer."""
        if not isinstance(descriptor, Descriptor):
            raise ConfigError("descriptor", descriptor, "it must be an aslab.share.Descriptor")
        while self.feed():
            pass
        number = next(self._numbers)
        if self._handed.get(descriptor.generation) == descriptor:
            self.answers[number] = self._handed.pop(descriptor.generation)
            return number
        try:
            data = encode(Message(Kind.CLAIM, number, descriptor))
        except (struct.error, TypeError):
            raise RefusedError(f"{descriptor} is not one of a service's") from None
        self._asked.add(number)
        self._send(data)
        return number

    def forget(self, number: int) -> None:
        """Nobody waits for that answer any more."""
        self._asked.discard(number)
        place = self.answers.pop(number, None)
        if place is not None:
            self._let_go((0, place.generation))

    def answer(self, number: int, descriptor: Descriptor, *, writable: bool) -> Claim:
        """The claim that was asked for.

        :raises RefusedError: if it was refused
        """
        place = self.answers.pop(number)
        if place is None:
            raise RefusedError(f"{descriptor} is not shared, or not any more")
        return self.claim(place, writable=writable)

    def claim(self, place: Descriptor, *, writable: bool = False, receiver: int = 0) -> Claim:
        """Make a claim of what was granted, or of a frame for a receiver."""
        slab = self._slabs.get(place.slab)
        if slab is None or place.offset + place.size > slab.size:
            raise self.lose("the service granted what it has not shown")
        exporter = slab.export(place, writable=writable)
        number = next(self._numbers)
        self._held[number] = weakref.ref(exporter, partial(self._dropped, number, (receiver, place.generation)))
        return Claim(exporter, place, writable=writable)

    def join(self, channel: str) -> int:
        """A new receiver of a channel. Returns its number."""
        if not 0 < len(channel.encode()) <= 256:
            raise ConfigError("channel", channel, "it must be a name of 1 to 256 bytes")
        number = next(self._numbers)
        self.frames[number] = deque()
        self._send(encode(Message(Kind.JOIN, number, text=channel)))
        return number

    def leave(self, number: int) -> None:
        """Close a receiver; what it has not read goes back."""
        frames = self.frames.pop(number, None)
        if frames is None or self.lost:
            return
        self._send(encode(Message(Kind.LEAVE, number, size=self._seen.pop(number, 0))))
        for place in frames:
            self._let_go((number, place.generation))
        self.flush()

    # -- what comes

    def feed(self, *, wait: bool = False) -> bool:
        """Take in what has come; False if that is nothing.

        :param wait: until something comes, if the socket blocks
        """
        if self.lost:
            return False
        try:
            data, fds, short = sockets.receive(self.sock, wait=wait)
        except BlockingIOError:
            return False
        except OSError as exc:
            self.lose(f"the connection broke: {exc}")
            return False
        self._fds.extend(fds)
        if self.sock.fileno() < 0:  # another thread has closed this client meanwhile
            self._close_files()
        elif short:
            self.lose("a slab's file could not be received: too many open files")
        elif not data:
            self.lose("the service is gone")
        else:
            try:
                frames = self._decoder.frames(data)
                if frames is not None:
                    self._take_frames(frames)
                else:
                    for message in self._decoder.feed(data):
                        self._take(message)
            except (Garbage, OSError) as exc:
                self.lose(f"the service could not be understood: {exc}")
        return not self.lost

    def _take(self, message: Message) -> None:
        kind, number, place = message.kind, message.number, message.place
        if kind is Kind.SLAB:
            if not self._fds:
                raise Garbage("a slab without its file")
            fd = self._fds.popleft()
            try:
                if os.fstat(fd).st_size < message.size:
                    raise Garbage("a slab that is larger than its file")
                self._slabs[number] = _Slab(fd, message.size)
            finally:
                os.close(fd)
        elif kind is Kind.GONE:
            self._slabs.pop(number, None)
        elif kind is Kind.FRAME:
            self._take_frames([(number, place)])
        elif kind is Kind.END:
            self.ended.add(number)
        elif kind is Kind.ERROR:
            raise Garbage(message.text)
        elif kind is Kind.GRANTED and not number:
            self._handed[place.generation] = place
        elif kind in (Kind.GRANTED, Kind.REFUSED):
            self._answered(number, place if kind is Kind.GRANTED else None)
        else:
            raise Garbage(f"{kind.name} is not for a service to say")

    def _take_frames(self, frames: list[tuple[int, Descriptor]]) -> None:
        for number, place in frames:
            if number in self.frames:  # what comes after a LEAVE, the service releases itself
                self.frames[number].append(place)
                self._seen[number] = self._seen.get(number, 0) + 1

    def _answered(self, number: int, place: Descriptor | None) -> None:
        if place is not None and place.generation in self._handed:  # given unasked, and then asked for
            del self._handed[place.generation]
            self._let_go((0, place.generation))
        if number in self._asked:
            self._asked.discard(number)
            self.answers[number] = place
        elif place is not None:  # who asked was cancelled
            self._let_go((0, place.generation))

    def lose(self, why: str) -> DisconnectedError:
        """Give the connection up, also for a thread that waits in it. Memory that is claimed stays mapped."""
        if not self.lost:
            self.lost = why
            with suppress(OSError):  # the service is gone, or this is a child by fork, whose copy is closed
                self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()
            self._close_files()
            self._slabs.clear()
        return DisconnectedError(self.lost)

    def _close_files(self) -> None:
        while self._fds:
            os.close(self._fds.popleft())

    # -- letting go

    def _dropped(self, number: int, release: tuple[int, int], _: object) -> None:
        self._held.pop(number, None)
        self._let_go(release)

    def _let_go(self, release: tuple[int, int]) -> None:
        self._released.append(release)
        waiting = any(list(self.frames.values()))
        if not waiting or len(self._released) >= BATCH or time.monotonic() - self._sent > PAUSE:
            self.flush()

    def _send(self, data: bytes) -> None:
        if self.lost:
            raise DisconnectedError(self.lost)
        with self._sending:
            self._out += data
        self.flush()

    def flush(self) -> None:
        """Send what there is room for now, and have the rest sent later.

        Any thread, a finaliser's too: it waits for no lock.
        """
        while (self._out or self._released) and not self.lost and self._sending.acquire(blocking=False):
            try:
                if self._stuck:
                    return
                if not self._send_some():
                    self._begin_waiting()
                    return
            finally:
                self._sending.release()

    def _send_some(self) -> bool:
        """False if there is no room. Under the lock."""
        while self._released and len(self._out) < LONGEST:
            self._out += encode_release(*self._released.popleft())
        self._sent = time.monotonic()
        try:
            self._out = self._out[sockets.send(self.sock, self._out) :]
        except BlockingIOError:
            return False
        except OSError:  # the reader will see why
            self._out = b""
            self._released.clear()
        return True

    def _begin_waiting(self) -> None:
        # In a thread of its own: the one that reads may wait for a frame that comes only after these releases.
        self._stuck = True
        try:
            _thread.start_new_thread(self._send_rest, ())
        except (RuntimeError, MemoryError):  # there is none to be had: the next call tries again
            self._stuck = False

    def _send_rest(self) -> None:
        while self._stuck:
            with suppress(ValueError, OSError):  # it has just been closed
                _wait_for_room(self.sock)
            with self._sending:
                room = True
                while room and (self._out or self._released) and not self.lost:
                    room = self._send_some()
                self._stuck = not room
        self.flush()  # what was released while the lock was held
