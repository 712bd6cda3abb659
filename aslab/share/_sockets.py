"""Unix sockets of _unix.py, with descriptors beside the bytes."""

from __future__ import annotations

import array
import os
import socket

from .._unix import accept as accept
from .._unix import dial, ours
from .._unix import listen as listen
from .._unix import peer as peer
from ._errors import DisconnectedError

CHUNK = 64 * 1024
MOST_FDS = 16
"""Descriptors that one call takes in; the kernel ends a read at the first message that carries some."""
_SEND = int(socket.MSG_DONTWAIT) | int(getattr(socket, "MSG_NOSIGNAL", 0))
_RECEIVE_WAITING = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_RECEIVE = int(socket.MSG_DONTWAIT) | _RECEIVE_WAITING
_CUT = int(socket.MSG_CTRUNC)
_ROOM = socket.CMSG_SPACE(MOST_FDS * array.array("i").itemsize)


def connect(path: str | os.PathLike[str]) -> socket.socket:
    """A non-blocking connection to a service of this user.

    :raises OSError: if there is none
    :raises DisconnectedError: if it is another user's
    """
    sock = dial(path)
    try:
        if not ours(sock):
            raise DisconnectedError(f"the service at {os.fspath(path)!r} belongs to another user")
    except BaseException:
        sock.close()
        raise
    return sock


def send(sock: socket.socket, data: bytes, fd: int | None = None) -> int:
    """Send what goes now. Returns the number of bytes.

    :raises BlockingIOError: if nothing does
    """
    if fd is None:
        return sock.send(data, _SEND)
    return sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))], _SEND)


def receive(sock: socket.socket, *, wait: bool = False) -> tuple[bytes, list[int], bool]:
    """What has come: the bytes, the descriptors, and whether descriptors were lost because there is no room.

    :param wait: until something comes, if the socket blocks
    :raises BlockingIOError: if nothing has
    """
    data, ancillary, told, _ = sock.recvmsg(CHUNK, _ROOM, _RECEIVE_WAITING if wait else _RECEIVE)
    if not ancillary:
        return data, [], bool(told & _CUT)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds), bool(told & _CUT)
