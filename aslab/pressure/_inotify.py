"""Waits for files to change, on the event loop: Linux' inotify(7) through ctypes.

The kernel signals changes to the files of a cgroup, and this receives them without polling. It does not say what
changed: the caller reads the few files it needs anyway, which is also correct when events were merged or lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

import anyio

MODIFY = 0x2
"""The file was written, or its contents from the kernel changed (linux/inotify.h: IN_MODIFY)."""
DELETE = 0x200
"""Something in the directory was removed (IN_DELETE)."""
DELETE_SELF = 0x400
"""The file itself was removed (IN_DELETE_SELF). Kernel file systems do not always signal this."""

_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """Watches files. For one task; closed by its ``with`` block.

    Costs one file descriptor, and one of the user's inotify instances (fs.inotify.max_user_instances, 128 on
    most systems).

    :raises OSError: if there is no inotify, or too many are in use
    """

    def __init__(self) -> None:
        self._fd = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self, path: str, events: int) -> None:
        """From now on, make `changed` return on these events of the file or directory.

        :raises OSError: if it does not exist, or cannot be read
        """
        _call("inotify_add_watch", self._fd, os.fsencode(path), ctypes.c_uint32(events))

    async def changed(self) -> None:
        """Suspend until there were events since the last call. Cancelling loses none."""
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
