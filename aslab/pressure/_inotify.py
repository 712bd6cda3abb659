"""Waiting on the event loop for files to change: Linux' inotify(7), by ctypes.

The kernel notifies changes of a cgroup's files, so there is no need to poll them. What changed is not reported:
the caller reads the few files it cares about anyway, which is also right when events were merged or the queue
overflowed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

import anyio

MODIFY = 0x2
"""The file was written, or the kernel changed its contents (linux/inotify.h: IN_MODIFY)."""
DELETE = 0x200
"""An entry of the directory was removed (IN_DELETE)."""
DELETE_SELF = 0x400
"""The file itself was removed (IN_DELETE_SELF). The kernel's own file systems do not always report it."""

_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """Watches files. For one task; closed by its ``with`` block.

    Uses one file descriptor and one of the user's inotify instances (fs.inotify.max_user_instances, 128 on most
    systems).

    :raises OSError: where there is no inotify, or too many are in use
    """

    def __init__(self) -> None:
        self._fd = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self, path: str, events: int) -> None:
        """Let `changed` return for these events of the file or directory, from now on.

        :raises OSError: if it does not exist, or may not be read
        """
        _call("inotify_add_watch", self._fd, os.fsencode(path), ctypes.c_uint32(events))

    async def changed(self) -> None:
        """Suspend until there was an event since the last call. Cancellation loses none."""
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
