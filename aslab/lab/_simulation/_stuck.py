"""Who waits on what, read from the stack of each suspended task.

On every loop a coroutine knows the one that it awaits, down to the one that is really suspended. The local
variables of aslab's own frames say what is waited for; the innermost frame of the program says where.
"""

from __future__ import annotations

import gc
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from ..._cache import Cache
from ..._kmem import _move, _slowpath
from ..._kmem._arena import Arena
from ..._kmem._supply import Supply
from ..._kmem._worker import Worker
from ..._reaper import Reaper
from ..._tasks import Tasks
from ...faults import Deadlock

_ASLAB = str(Path(__file__).parents[2]) + os.sep
_LIBRARIES = tuple({sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "purelib", "platlib")})


def _code(owner: type | ModuleType, name: str, *needed: str) -> CodeType:
    """The code of one of aslab's functions, which needs these local variables. A rename fails on import."""
    code: CodeType = vars(owner)[name].__code__
    missing = set(needed) - {*code.co_varnames, *code.co_cellvars}
    if missing:
        raise TypeError(f"{code.co_qualname} has no local variable {', '.join(sorted(missing))}")
    return code


_AT_REST = {
    _code(Tasks, "run"),
    _code(Tasks, "_run_ageing"),
    _code(Tasks, "_run_source"),
    _code(Arena, "run_wakeups"),
    _code(Reaper, "run"),
    _code(Reaper, "run_at_the_limit"),
    _code(Supply, "run"),
    _code(Worker, "run"),
    _code(_move, "run"),
}
"""Code of an allocator's own tasks, which wait for work whenever all is well."""
_WORDS: dict[CodeType, Callable[[dict[str, Any]], str]] = {
    _code(Cache, "_alloc_slowly", "self"): lambda names: f"an object of cache {names['self'].name!r}",
    _code(Cache, "alloc_many", "self", "n"): lambda names: (
        f"{names['n']} objects at once of cache {names['self'].name!r}"
    ),
    _code(_slowpath, "fill", "pool", "objects"): lambda names: (
        f"{names['objects']} free objects of cache {names['pool'].config.name!r}"
    ),
    _code(_slowpath, "ready", "pool"): lambda names: f"the reserve of cache {names['pool'].config.name!r}",
    _code(Worker, "_make_slab", "pool"): lambda names: f"a slab for cache {names['pool'].config.name!r}",
    _code(Deadlock, "_get_stuck"): lambda names: "an injected deadlock",
}
"""What a frame with that code waits for, in words, given its local variables."""
_MAIN = f"{__package__}._run._root"
"""The name that both loops give to the main task of a run."""
_OPAQUE = {"async_generator_asend", "async_generator_athrow", "anext_awaitable", "coroutine_wrapper"}
"""Python's own wrappers around an awaited generator or coroutine, which do not show what they wrap."""


@dataclass(frozen=True, slots=True)
class StuckTask:
    """A task that waits for something that will never happen."""

    name: str
    waits_on: str
    """What it waits for, in words."""
    where: str
    """The innermost line of the program's own code, as ``file.py:12 in function``."""

    def __str__(self) -> str:
        return f"{self.name} waits on {self.waits_on} at {self.where}"


def describe(tasks: Iterable[tuple[str, Any]], *, everyone: bool = False) -> tuple[StuckTask, ...]:
    """Find the stuck tasks among these names and coroutines, in the same order.

    Tasks at rest, and those that run only library code, are left out unless ``everyone`` is set.
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
        at_rest = any(frame.f_code in _AT_REST for frame in frames)
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
    """The frames of a suspended awaitable, from the outermost to the innermost."""
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
            awaitable = next(iter(gc.get_referents(awaitable)), None)  # the garbage collector does see it


def _is_library(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_LIBRARIES) and not _is_aslab(frame)


def _is_aslab(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_ASLAB)


def _known(frame: FrameType) -> str:
    """What a frame waits for, in words; empty if it is none of those above."""
    words = _WORDS.get(frame.f_code)
    return words(frame.f_locals) if words else ""
