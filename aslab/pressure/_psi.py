"""Pressure on the machine: Linux' pressure stall information (PSI), by a trigger.

Reference: Documentation/accounting/psi.rst, kernel/sched/psi.c. A trigger's file descriptor reports POLLPRI, which
event loops do not wait for. But an epoll descriptor is readable when anything it watches is ready; so the trigger
is put into an epoll of its own, and the loop waits for that one.

The kernel clears the event as soon as the trigger is polled, and the loop's own poll of the epoll counts. So the
wake-up of the loop is the event: a poll of the epoll afterwards finds nothing, unless the trigger is gone for
good. An event that the loop polls away while it starts to wait would be lost, hence the poll before each wait. A
gap remains between that poll and the wait. But the next event is a window away, so only a loop that is late by a
whole window can hit the gap, and lasting pressure is reported again in the next window.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
from collections.abc import Callable
from functools import partial

import anyio
import anyio.lowlevel

from .._checks import boolean, seconds
from .._errors import ConfigError
from .._reach import self_contained
from ..backends._threads import run_blocking

log = logging.getLogger("aslab.pressure")

SHORTEST_WINDOW, LONGEST_WINDOW = 0.5, 10.0
MICROSECOND = 1e-6
CLOSE_PATIENCE = 1.0
"""Seconds that `run` waits at its end for the thread that closes the trigger, before it abandons it."""


@self_contained()
class Psi:
    """A `Source`: tasks were stalled because memory was short, for ``stall`` seconds within ``window`` seconds.

    Calls ``on_pressure`` with None (everything that can be spared), because stalls tell how bad it is but not how
    many bytes would help. At most once per window.

    Since Linux 6.4 any process may set a trigger whose window is a multiple of 2 s; the kernel then checks every
    2 s. Other windows, and all windows before 6.4, require CAP_SYS_RESOURCE, and the kernel checks ten times per
    window. If there is no such file (other systems, a kernel without PSI) or the kernel refuses, `run` returns.
    It also returns when the cgroup that ``path`` belongs to is removed.

    Costs two file descriptors, and no time while there is no pressure. Removing the trigger blocks for 10 to 20 ms
    (measured), so a thread does it.

    :param stall: seconds of stall that trigger it, up to ``window``
    :param window: seconds, from 0.5 to 10
    :param full: count only the time in which all tasks are stalled, not at least one
    :param path: the file, such as the ``memory.pressure`` of a cgroup v2
    :raises ConfigError: for an option that is not allowed
    """

    def __init__(
        self,
        *,
        stall: float = 0.15,
        window: float = 2.0,
        full: bool = False,
        path: str | os.PathLike[str] = "/proc/pressure/memory",
    ) -> None:
        seconds("window", window)
        if not SHORTEST_WINDOW <= window <= LONGEST_WINDOW:
            raise ConfigError(
                "window", window, f"it must be from {SHORTEST_WINDOW:g} to {LONGEST_WINDOW:g} seconds"
            )
        seconds("stall", stall)
        if not MICROSECOND <= stall <= window:
            raise ConfigError("stall", stall, f"it must be from {MICROSECOND:f} seconds to the window, {window:g}")
        boolean("full", full)
        if not isinstance(path, (str, os.PathLike)):
            raise ConfigError("path", path, "it must be the path of a pressure file")
        self._path = os.fspath(path)
        self._trigger = f"{'full' if full else 'some'} {_microseconds(stall)} {_microseconds(window)}"
        self._arm: Callable[[str, str], int] = arm

    async def run(self, on_pressure: Callable[[int | None], object]) -> None:
        """As `Source.run`. For one event loop; concurrent runs of one object do not interfere."""
        if not hasattr(select, "epoll"):
            self._absent("this system has no epoll")
            return
        try:
            trigger = self._arm(self._path, self._trigger)
        except OSError as exc:
            self._absent(exc)
            return
        try:
            await self._listen(trigger, on_pressure)
        finally:
            with anyio.move_on_after(CLOSE_PATIENCE, shield=True):
                await run_blocking(partial(os.close, trigger))

    async def _listen(self, trigger: int, on_pressure: Callable[[int | None], object]) -> None:
        with contextlib.ExitStack() as stack:
            try:
                epoll = stack.enter_context(select.epoll())
                epoll.register(trigger, select.EPOLLPRI | select.EPOLLERR)
            except OSError as exc:
                self._absent(exc)
                return
            while True:
                events = epoll.poll(0)
                if events:
                    await anyio.lowlevel.checkpoint()  # the loop gets its turn, whatever the descriptor does
                else:
                    await anyio.wait_readable(epoll.fileno())
                    events = epoll.poll(0)  # an event is no longer there
                if any(flags & (select.EPOLLERR | select.EPOLLHUP) for _, flags in events):
                    log.debug("no more memory pressure from %s: it is gone", self._path)
                    return
                on_pressure(None)

    def _absent(self, why: object) -> None:
        log.debug("no memory pressure from %s (%s): %s", self._path, self._trigger, why)


def arm(path: str, trigger: str) -> int:
    """Set a trigger, which lasts as long as its file descriptor. Quick; does not block.

    :raises OSError: if there is no such file, or the kernel refuses
    """
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(fd, trigger.encode() + b"\0")  # the kernel overwrites the last byte
    except BaseException:
        os.close(fd)
        raise
    return fd


def _microseconds(given: float) -> int:
    return round(given / MICROSECOND)
