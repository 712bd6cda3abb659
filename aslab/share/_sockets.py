"""Unix sockets between processes of one user: listening, connecting, and descriptors beside the bytes."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import stat
import struct
import weakref
from pathlib import Path

from ._errors import DisconnectedError

CHUNK = 64 * 1024
MOST_FDS = 16
"""Descriptors that one call takes in; the kernel ends a read at the first message that carries some."""
_SEND = int(socket.MSG_DONTWAIT) | int(getattr(socket, "MSG_NOSIGNAL", 0))
_RECEIVE = int(socket.MSG_DONTWAIT) | int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_CUT = int(socket.MSG_CTRUNC)
_ROOM = socket.CMSG_SPACE(MOST_FDS * array.array("i").itemsize)
_open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
"""All sockets made here. A child by fork closes its copies: else the other side would not see us die."""


def listen(path: str | os.PathLike[str]) -> socket.socket:
    """A non-blocking listener that only this user can connect to.

    :raises FileExistsError: if a service listens there, or something else is there
    """
    place = Path(path)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(place.lstat().st_mode) or _is_alive(path):
            raise FileExistsError(f"{os.fspath(path)!r} is in use")
        place.unlink()
    sock = _new()
    try:
        sock.bind(os.fspath(path))
        place.chmod(0o600)  # nobody can connect before it listens
        sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: str | os.PathLike[str]) -> socket.socket:
    """A non-blocking connection to a service of this user.

    :raises OSError: if there is none
    :raises DisconnectedError: if it is another user's
    """
    sock = _new()
    try:
        sock.setblocking(True)
        sock.connect(os.fspath(path))
        sock.setblocking(False)
        if peer(sock)[1] != os.geteuid():
            raise DisconnectedError(f"the service at {os.fspath(path)!r} belongs to another user")
    except BaseException:
        sock.close()
        raise
    return sock


def accept(listener: socket.socket) -> socket.socket:
    """The next connection, non-blocking.

    :raises OSError: if there is none now
    """
    sock, _ = listener.accept()
    sock.setblocking(False)
    _open.add(sock)
    return sock


def peer(sock: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end, by the kernel's word. The process is 0 where that is not told."""
    if hasattr(socket, "SO_PEERCRED"):
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, uid
    credentials = sock.getsockopt(0, 1, 76)  # SOL_LOCAL, LOCAL_PEERCRED: struct xucred of version, user, groups
    return 0, struct.unpack_from("=II", credentials)[1]


def send(sock: socket.socket, data: bytes, fd: int | None = None) -> int:
    """Send what goes now. Returns the number of bytes.

    :raises BlockingIOError: if nothing does
    """
    if fd is None:
        return sock.send(data, _SEND)
    return sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))], _SEND)


def receive(sock: socket.socket) -> tuple[bytes, list[int], bool]:
    """What has come: the bytes, the descriptors, and whether descriptors were lost because there is no room.

    :raises BlockingIOError: if nothing has
    """
    data, ancillary, told, _ = sock.recvmsg(CHUNK, _ROOM, _RECEIVE)
    if not ancillary:
        return data, [], bool(told & _CUT)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds), bool(told & _CUT)


def _new() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    _open.add(sock)
    return sock


def _is_alive(path: str | os.PathLike[str]) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
    return True


def _close_in_child() -> None:
    for sock in list(_open):
        sock.close()
    _open.clear()


os.register_at_fork(after_in_child=_close_in_child)
