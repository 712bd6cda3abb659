"""The event loops that a command can run on."""

from __future__ import annotations

import enum
import importlib
import importlib.util
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, TypeVarTuple

import anyio

from ._errors import EXTRA, BadInput

T = TypeVar("T")
Args = TypeVarTuple("Args")


class Loop(enum.StrEnum):
    """An event loop, by its name on the command line."""

    ASYNCIO = "asyncio"
    UVLOOP = "uvloop"
    TRIO = "trio"


def run_on(loop: Loop, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
    """Run an async function on that kind of loop.

    :raises KeyboardInterrupt: after Ctrl-C, even if the loop wraps it in an exception group
    """
    backend = "asyncio"
    options: dict[str, Any] = {}
    if loop is Loop.TRIO:
        from ..lab._simulation._interrupts import TRIO_OPTIONS

        backend, options = "trio", dict(TRIO_OPTIONS)
    if loop is Loop.UVLOOP:
        options["loop_factory"] = importlib.import_module("uvloop").new_event_loop
    with plain_interrupts():
        return anyio.run(function, *args, backend=backend, backend_options=options)


@contextmanager
def plain_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt itself even if the loop wraps it in an exception group."""
    try:
        yield
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None


def installed() -> list[Loop]:
    """Those that this Python can import."""
    return [loop for loop in Loop if importlib.util.find_spec(loop.value)]


def check_installed(loop: Loop) -> None:
    """Refuse a loop whose package is not installed.

    :raises BadInput: with the extra that installs it
    """
    try:
        importlib.import_module(loop.value)
    except ModuleNotFoundError:
        raise BadInput(f"the loop {loop.value} {EXTRA}") from None
