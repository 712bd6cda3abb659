"""Pressure from a service's own memory limit: the events of a cgroup v2.

A container near its limit is throttled or made to reclaim long before the machine itself is short of memory.
The kernel counts these events in ``memory.events`` and signals changes. Reference:
Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files".
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from .._errors import ConfigError
from ._inotify import DELETE, DELETE_SELF, MODIFY, Inotify

log = logging.getLogger("aslab.pressure")

COUNTERS = ("high", "max", "oom")
"""Throttled above memory.high; about to exceed memory.max; reclaim could not prevent that."""


class Cgroup:
    """A `Source`: the cgroup v2 of this process, or the one whose directory is given.

    Each time the kernel has counted more ``high``, ``max`` or ``oom`` events in the group or below it, the source
    asks for the bytes by which memory.current exceeds memory.high, or memory.max if there is no high; None if it
    exceeds neither. The kernel signals at most 100 times a second.

    Parent groups with limits (a slice, a pod) have their own events: pass their directory. Reading needs no
    privilege. There is nothing to watch in the root group, with cgroup v1, or if the memory controller is not
    enabled; then, or when the group is removed, `run` returns.

    Costs two file descriptors, a wake-up per change, and one for each sibling group that is removed.

    :param path: the group's directory; a relative path is resolved when `run` starts
    :raises ConfigError: if ``path`` is neither a path nor None
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise ConfigError("path", path, "must be the directory of a cgroup, or None")
        self._path = None if path is None else os.fspath(path)

    async def run(self, on_pressure: Callable[[int | None], object]) -> None:
        """As `Source.run`. For one event loop; several runs of one object do not interfere."""
        with contextlib.ExitStack() as stack:
            try:
                group = stack.enter_context(_Group(own_directory() if self._path is None else self._path))
                inotify = stack.enter_context(Inotify())
                group.watch(inotify)
                seen = group.events()  # after setting the watch, so that nothing is missed in between
            except OSError as exc:
                log.debug("no memory pressure from a cgroup: %s", exc)
                return
            while True:
                await inotify.changed()
                try:
                    events = group.events()
                    risen = any(events.get(name, 0) > seen.get(name, 0) for name in COUNTERS)
                    wanted = group.excess() if risen else None
                except OSError as exc:
                    log.debug("no more memory pressure from a cgroup, which is gone: %s", exc)
                    return
                seen = events
                if risen:
                    on_pressure(wanted)


class _Group:
    """The files of one cgroup, through its open directory: a new group of the same name is another group."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def watch(self, inotify: Inotify) -> None:
        inotify.watch(os.path.join(self._path, "memory.events"), MODIFY | DELETE_SELF)  # noqa: PTH118
        # When a cgroup is removed, Linux 6.18 only signals watches on its parent directory.
        with contextlib.suppress(OSError):
            inotify.watch(os.path.join(self._path, os.pardir), DELETE)  # noqa: PTH118 - not resolved by name

    def events(self) -> dict[str, int]:
        """All counters, by name."""
        pairs = (line.split() for line in self._read("memory.events").splitlines())
        return {name: int(count) for name, count in pairs}

    def excess(self) -> int | None:
        """Bytes above the relevant limit; None if not above."""
        limit = self._read("memory.high").strip()
        if limit == "max":
            limit = self._read("memory.max").strip()
        if limit == "max":
            return None
        above = int(self._read("memory.current")) - int(limit)
        return above if above > 0 else None

    def _read(self, name: str) -> str:
        fd = os.open(name, os.O_RDONLY, dir_fd=self._directory)
        try:
            return os.read(fd, 4096).decode()
        finally:
            os.close(fd)

    def __enter__(self) -> _Group:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._directory)


def own_directory() -> str:
    """The directory of this process' cgroup v2.

    :raises OSError: if there is none
    """
    process = Path("/proc/self")
    found = find_directory((process / "cgroup").read_text(), (process / "mountinfo").read_text())
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "this process has no mounted cgroup v2")
    return found


def find_directory(cgroup: str, mountinfo: str) -> str | None:
    """Find it from the contents of the two files in /proc (formats: cgroups(7), proc_pid_mountinfo(5)).

    Only part of the tree may be mounted, and the group may be outside of it.
    """
    path = next((line[3:] for line in cgroup.splitlines() if line.startswith("0::")), None)
    if path is None:
        return None
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        if not source.startswith("cgroup2 "):
            continue
        root, point = (_unescaped(field) for field in mount.split(" ")[3:5])
        group = PurePosixPath(path)
        if group.is_relative_to(root):
            below = group.relative_to(root)
            if os.pardir not in below.parts:
                return str(point / below)
    return None


def _unescaped(field: str) -> PurePosixPath:
    return PurePosixPath(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field))
