"""Where in a service something happened, and in which task: cheap to note, put into words only when it is read.

A site is the first line outside of aslab and of the event loop's own code, with the name of the running task. What
is kept are code objects and offsets, never a frame, a task or what they refer to: a site keeps no buffer alive.

Always true: a note does not raise, whatever the caller's module and task are, as an object may be in hand.

Any thread, finalisers included. No state is kept here but what is known of modules by their names.
"""

from __future__ import annotations

import sys
import threading
from types import CodeType, FrameType
from typing import Any

DEEPEST = 32
"""Lines kept of a whole stack."""
KNOWN = 4096
"""The most modules that are known by their names: a service may make up names without end."""

_CORE, _PASSED, _OURS, _END, _THEIRS = range(5)
"""Kinds of modules: the allocator itself; what merely passes calls on; the rest of aslab; what runs tasks and
threads, so that what lies outside of it is not the caller's; and everything else."""
_LOOPS = (
    "asyncio.base_events",
    "asyncio.events",
    "asyncio.runners",
    "anyio._backends._asyncio",
    "anyio._backends._trio",
    "concurrent.futures.thread",
    "threading",
    "trio._core._run",
    "trio._threads",
)
_kinds: dict[str, int] = {**dict.fromkeys(_LOOPS, _END), "aslab": _CORE}


class Site:
    """One place in a service, at one moment."""

    __slots__ = ("_steps", "task")

    def __init__(self, task: str, steps: tuple[tuple[CodeType, int], ...]) -> None:
        self.task: str = task
        """The name of the task, or of the thread if it ran none."""
        self._steps = steps  # code objects and offsets in them, the innermost first

    @property
    def place(self) -> str:
        """``file:line in function``, or "" if the task ran nothing but aslab, as in ``gather(cache.alloc())``."""
        return _words(*self._steps[0]) if self._steps else ""

    @property
    def stack(self) -> tuple[str, ...]:
        """All lines that were noted, each as `place`, the innermost first."""
        return tuple(_words(*step) for step in self._steps)

    def __str__(self) -> str:
        place = self.place
        return f"{self.task} at {place}" if place else self.task


def here(above: int = 1, *, whole: bool = False) -> Site:
    """Note where the caller of aslab is now. About a microsecond.

    :param above: the frame to begin with: 1 is that of the caller of this function, 2 is that of its caller
    :param whole: note all lines from there outwards, `DEEPEST` at most
    """
    steps: list[tuple[CodeType, int]] = []
    inside: FrameType | None = None
    frame: FrameType | None = sys._getframe(above)
    while frame is not None:
        name = frame.f_globals.get("__name__")
        kind = _THEIRS if type(name) is not str else _kinds[name] if name in _kinds else _kind(name)
        if kind == _END:
            break
        if kind == _THEIRS or (steps and kind != _PASSED):
            steps.append((frame.f_code, frame.f_lasti))
            if not whole or len(steps) == DEEPEST:
                break
        elif kind == _OURS and inside is None:
            inside = frame
        frame = frame.f_back
    if not steps and inside is not None:  # a task of aslab's own, such as a protocol's
        steps.append((inside.f_code, inside.f_lasti))
    try:
        task = who()
    except Exception:  # a task of a class that the service has made up
        task = "a task without a name"
    return Site(task, tuple(steps))


def who() -> str:
    """Return the name of the running task, or of the thread if it runs none."""
    asyncio: Any = sys.modules.get("asyncio")
    loop = None if asyncio is None else asyncio._get_running_loop()
    if loop is not None:
        task = asyncio.current_task(loop)
        return "a callback of the event loop" if task is None else str(task.get_name())
    trio: Any = sys.modules.get("trio")
    if trio is not None:
        try:
            return str(trio.lowlevel.current_task().name)
        except RuntimeError:  # it does not run in this thread
            pass
    return threading.current_thread().name


def _kind(module: str) -> int:
    top, _, below = module.partition(".")
    if top == "aslab":
        kind = _CORE if below.startswith("_") else _OURS
    else:
        kind = _PASSED if top in ("asyncio", "anyio", "contextlib", "functools", "trio") else _THEIRS
    if len(_kinds) < KNOWN:
        _kinds[module] = kind
    return kind


def _words(code: CodeType, offset: int) -> str:
    lines = (line for start, end, line in code.co_lines() if start <= offset < end)
    return f"{code.co_filename}:{next(lines, None) or code.co_firstlineno} in {code.co_qualname}"
