"""Pressure from a memory limit of one's own: the events of a cgroup v2.

A container near its limit is throttled or made to reclaim long before the machine itself is short of memory. The
kernel counts these events in ``memory.events`` and notifies changes. Reference:
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
from .._reach import self_contained
from ._inotify import DELETE, DELETE_SELF, MODIFY, Inotify

log = logging.getLogger("aslab.pressure")

COUNTERS = ("high", "max", "oom")
"""Throttled above memory.high; about to exceed memory.max; out of memory in spite of reclaim."""


@self_contained()
class Cgroup:
    """A `Source`: the cgroup v2 of this process, or the one whose directory is given.

    Reports pressure whenever the kernel has counted more ``high``, ``max`` or ``oom`` events, in the group or in
    a group below it. The bytes wanted are those that memory.current is above memory.high, or above memory.max if
    there is no high; None if it is not above. The kernel notifies at most 100 times a second.

    The limits of groups above (a slice, a pod) have events of their own: pass that directory to watch them.
    Reading needs no privilege. There is nothing to watch in the root group, under cgroup v1, or where the memory
    controller is not enabled; then, and when the group is removed, `run` returns.

    Costs two file descriptors, a wake-up for each change, and one for each sibling group that is removed.

    :param path: the group's directory; a relative path is resolved when it runs
    :raises ConfigError: if ``path`` is neither a path nor None
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise ConfigError("path", path, "it must be the directory of a cgroup, or None")
        self._path = None if path is None else os.fspath(path)

    async def run(self, on_pressure: Callable[[int | None], object]) -> None:
        """As `Source.run`. For one event loop; concurrent runs of one object do not interfere."""
        with contextlib.ExitStack() as stack:
            try:
                group = stack.enter_context(_Group(own_directory() if self._path is None else self._path))
                inotify = stack.enter_context(Inotify())
                group.watch(inotify)
                seen = group.events()  # after the watch, so that no event in between is missed
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
                    log.debug("no more memory pressure from a cgroup, it is gone: %s", exc)
                    return
                seen = events
                if risen:
                    on_pressure(wanted)


class _Group:
    """The files of one cgroup, by its open directory: a new group of the same name is another group."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def watch(self, inotify: Inotify) -> None:
        inotify.watch(os.path.join(self._path, "memory.events"), MODIFY | DELETE_SELF)  # noqa: PTH118
        # When a cgroup is removed, Linux 6.18 notifies only watchers of the directory above.
        with contextlib.suppress(OSError):
            inotify.watch(os.path.join(self._path, os.pardir), DELETE)  # noqa: PTH118 - must not be resolved by name

    def events(self) -> dict[str, int]:
        """All counters, by name."""
        pairs = (line.split() for line in self._read("memory.events").splitlines())
        return {name: int(count) for name, count in pairs}

    def excess(self) -> int | None:
        """Bytes above the limit in effect; None if there is no limit, or nothing above it."""
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
    """The directory of the cgroup v2 that this process is in.

    :raises OSError: if there is none
    """
    process = Path("/proc/self")
    found = find_directory((process / "cgroup").read_text(), (process / "mountinfo").read_text())
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no cgroup v2 of this process is mounted")
    return found


def find_directory(cgroup: str, mountinfo: str) -> str | None:
    """The directory, from the text of two files in /proc (formats: cgroups(7), proc_pid_mountinfo(5)).

    A mount may show only part of the hierarchy, and the group may lie outside of it.
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
