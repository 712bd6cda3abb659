"""Waiting for files to change, on the event loop: Linux' inotify(7), through ctypes.

The kernel's files of a cgroup say so when they change, and this is how it can be heard without asking
again and again. What changed is not told: whoever waits reads the few files it cares for anyway, and
that is right also where events were merged or overflowed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

import anyio

MODIFY = 0x2
"""The file was written, or the kernel has something new in it (linux/inotify.h: IN_MODIFY)."""
DELETE = 0x200
"""Something in the directory was removed (IN_DELETE)."""
DELETE_SELF = 0x400
"""The file itself was removed (IN_DELETE_SELF). The kernel's own file systems do not always tell."""

_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """Watches files. For one task; closed by its ``with`` block.

    Costs one file descriptor, and one of the user's inotify instances (fs.inotify.max_user_instances, 128
    on most systems).

    :raises OSError: where there is no inotify, or too many are in use
    """

    def __init__(self) -> None:
        self._fd = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self, path: str, events: int) -> None:
        """Let `changed` return for these events of the file or directory, from now on.

        :raises OSError: if it is not there, or may not be read
        """
        _call("inotify_add_watch", self._fd, os.fsencode(path), ctypes.c_uint32(events))

    async def changed(self) -> None:
        """Suspend until something was heard since the last time. Cancelled, it loses nothing."""
        await anyio.wait_readable(self._fd)
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 65536)

    def __enter__(self) -> Inotify:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._fd)


def _call(name: str, *args: object) -> int:
    try:
        function = getattr(_libc, name)
    except AttributeError:
        raise OSError(errno.ENOSYS, f"no {name} on this system") from None
    result: int = function(*args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result
