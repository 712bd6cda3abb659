"""Unix sockets between processes of one user: listening, connecting, and who is at the other end.

Always true: a child made by fork closes its copies of all sockets made here; else the other side would not see us
die.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import weakref
from pathlib import Path

_open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
"""All sockets made here, and those of `close_in_child`."""


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


def dial(path: str | os.PathLike[str], patience: float = 5.0) -> socket.socket:
    """A non-blocking connection to whatever listens there; ask `ours` whose it is.

    Blocks while too many others wait to be accepted, as they do where the service has been stopped.

    :param patience: seconds to block at most; above 0
    :raises TimeoutError: if they are over
    :raises OSError: if nothing listens there
    """
    sock = _new()
    try:
        sock.setblocking(True)
        # A connection that would block is not begun, so there is nothing to poll for: the kernel has to limit it.
        _limit(sock, patience)
        sock.connect(os.fspath(path))
        _limit(sock, 0.0)
        sock.setblocking(False)
    except BlockingIOError:
        sock.close()
        raise TimeoutError(errno.ETIMEDOUT, f"it took no connection within {patience:g} s") from None
    except BaseException:
        sock.close()
        raise
    return sock


def pair() -> tuple[socket.socket, socket.socket]:
    """Two blocking sockets, connected to each other."""
    one, two = socket.socketpair()
    _open.update((one, two))
    return one, two


def accept(listener: socket.socket) -> socket.socket:
    """The next connection to a listener of any kind, non-blocking.

    :raises OSError: if there is none now
    """
    sock, _ = listener.accept()
    sock.setblocking(False)
    _open.add(sock)
    return sock


def close_in_child(sock: socket.socket) -> None:
    """Let a child made by fork close its copy of a socket that was not made here."""
    _open.add(sock)


def peer(sock: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end, by the kernel's word. The process is 0 where that is not told."""
    if hasattr(socket, "SO_PEERCRED"):
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, uid
    credentials = sock.getsockopt(0, 1, 76)  # SOL_LOCAL, LOCAL_PEERCRED: struct xucred of version, user, groups
    return 0, struct.unpack_from("=II", credentials)[1]


def ours(sock: socket.socket) -> bool:
    """Whether the process at the other end is this user's."""
    return peer(sock)[1] == os.geteuid()


def _new() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    _open.add(sock)
    return sock


def _limit(sock: socket.socket, seconds: float) -> None:
    """Limit what a blocking call may take to send or connect; 0 is no limit."""
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
    )


def _is_alive(path: str | os.PathLike[str]) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # it has more connections than it takes, but it listens
            pass
    return True


def _close_in_child() -> None:
    for sock in list(_open):
        sock.close()
    _open.clear()


os.register_at_fork(after_in_child=_close_in_child)
