"""Who waits on what: told from the stack of each suspended task.

A coroutine knows the one that it awaits, on every loop, down to the one that really waits. Frames of
aslab tell by their own objects what is waited for; the innermost frame outside of libraries tells where.
"""

from __future__ import annotations

import gc
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

_ASLAB = str(Path(__file__).parent.parent) + os.sep
_LIBRARIES = tuple({sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "purelib", "platlib")})
_AT_REST = {
    "Engine.run",
    "Engine._run_bell",
    "Engine._run_ageing",
    "Engine._run_source",
    "Moves.run",
    "Relief.run",
    "Supply.run",
    "Worker.run",
}
"""Tasks of an allocator that wait for work whenever all is well."""
_MAIN = "aslab.lab._run._root"
_OPAQUE = {"async_generator_asend", "async_generator_athrow", "anext_awaitable", "coroutine_wrapper"}
"""What Python puts before an awaited generator or coroutine, and does not let see through."""


@dataclass(frozen=True, slots=True)
class StuckTask:
    """A task that waits, and nothing will ever end it."""

    name: str
    waits_on: str
    """What it waits for, in words."""
    where: str
    """The innermost line of its own code, as ``file.py:12 in function``."""

    def __str__(self) -> str:
        return f"{self.name} waits on {self.waits_on} at {self.where}"


def describe(tasks: Iterable[tuple[str, Any]], *, everyone: bool = False) -> tuple[StuckTask, ...]:
    """From names and coroutines, those that are stuck, in the same order.

    Tasks at rest, and those of libraries alone, are left out, but not where ``everyone`` is asked for.
    """
    found = []
    for name, coroutine in tasks:
        frames = list(frames_of(coroutine))
        own = [number for number, frame in enumerate(frames) if not _is_library(frame)]
        if everyone and not own:
            own = [len(frames) - 1]
        if not frames:
            if everyone:
                found.append(StuckTask(name, f"a bare {type(coroutine).__name__}", "no line of its own"))
            continue
        at_rest = any(frame.f_code.co_qualname in _AT_REST and _is_aslab(frame) for frame in frames)
        if not own or (at_rest and not everyone):
            continue
        known = [words for frame in frames if (words := _known(frame))]
        beyond = frames[min(own[-1] + 1, len(frames) - 1)].f_code.co_qualname
        theirs = [frame for frame in frames if not _is_library(frame) and not _is_aslab(frame)]
        place = theirs[-1] if theirs else frames[own[0]]
        where = f"{Path(place.f_code.co_filename).name}:{place.f_lineno} in {place.f_code.co_qualname}"
        found.append(StuckTask("main" if name == _MAIN else name, known[-1] if known else beyond, where))
    return tuple(found)


def frames_of(awaitable: Any) -> Iterator[FrameType]:
    """From the outermost to the innermost."""
    while awaitable is not None:
        for prefix, following in (("cr", "await"), ("gi", "yieldfrom"), ("ag", "await")):
            frame = getattr(awaitable, f"{prefix}_frame", None)
            if frame is not None:
                yield frame
                awaitable = getattr(awaitable, f"{prefix}_{following}")
                break
        else:
            if type(awaitable).__name__ not in _OPAQUE:
                return
            awaitable = next(iter(gc.get_referents(awaitable)), None)  # the collector does see it


def _is_library(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_LIBRARIES) and not _is_aslab(frame)


def _is_aslab(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_ASLAB)


def _known(frame: FrameType) -> str:
    """What a frame of aslab waits for, if it is one that knows."""
    if not _is_aslab(frame):
        return ""
    names, code = frame.f_locals, frame.f_code.co_qualname
    if code == "Cache._get":
        what = "an object" if names["n"] == 1 else f"{names['n']} objects at once"
        return f"{what} of cache {names['self'].name!r}"
    if code == "Growth.fill":
        return f"{names['objects']} free objects of cache {names['self'].config.name!r}"
    if code == "Growth.ready":
        return f"the reserve of cache {names['self'].config.name!r}"
    if code == "Worker._make_slab":
        return f"a slab for cache {names['growth'].config.name!r}"
    if code == "Deadlock._get_stuck":
        return "an injected deadlock"
    return ""
