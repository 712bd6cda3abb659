"""Faults in a running service, for game days: what `Allocator.faults` is.

Off by default: without ``faults=True`` none of this exists, and no backend is wrapped. With it, each backend is
wrapped in a `Switch`, which costs a call for each slab and each emergency object while nothing is on.

Always true:

    1. a fault changes what backends do at once, in whichever thread it was turned on, even while the event loop is
       blocked; whatever takes the loop (what is held up, events) follows as soon as that runs
    2. each fault on and each off is logged once, and is one event; events come in the order of the changes,
       whichever threads made them
    3. a fault ends by its own time, and with the allocator
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from functools import partial

import anyio

from ._events import CacheEvent, EventKind
from ._kmem._arena import Arena
from .faults import Fault, FaultKind, Switch
from .faults._switch import switch

log = logging.getLogger("aslab")

GROWTH, EMERGENCY = "growth", "emergency"
_WHAT = {GROWTH: "growth", EMERGENCY: "emergency objects"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultStatus:
    """A fault that is on, at one moment."""

    where: str
    """``growth`` or ``emergency``."""
    kind: FaultKind
    """What it does."""
    age: float
    """Seconds that it has been on."""
    left: float | None
    """Seconds until it ends by itself; None if it does not."""
    delay: float
    """Of ``slow``: seconds by which each acquire takes longer."""
    times: int
    """Of ``fail``: acquires that are still to fail."""
    held_up: int
    """Acquires of this backend that are stuck or slow now."""

    def __str__(self) -> str:
        """One line for people."""
        ends = "" if self.left is None else f", for {_brief(self.left)} s more"
        held = f", holding up {self.held_up}" if self.held_up else ""
        return f"{_named(self.where, self.kind, self.delay, self.times)}{ends}{held}"


class Faults:
    """Faults of one allocator, turned on and off while it runs. Made by `open_allocator`. Any thread."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._changed = anyio.Event()
        self._told: deque[tuple[str, CacheEvent]] = deque()  # in order, for the event loop's thread to follow
        self.growth: Switch = switch(arena.slabs.backend, arena.clock, partial(self._tell, GROWTH))
        """Where slabs come from: ``stick(3)``, ``slow(0.2)``, ``fail(5)``, ``heal()``."""
        self.emergency: Switch = switch(arena.singles.backend, arena.clock, partial(self._tell, EMERGENCY))
        """Where emergency objects come from: likewise."""
        arena.slabs.interpose(self.growth)
        arena.singles.interpose(self.emergency)

    @property
    def by_name(self) -> dict[str, Switch]:
        """Both, by the names that they have in commands."""
        return {GROWTH: self.growth, EMERGENCY: self.emergency}

    def heal(self) -> None:
        """End all faults; what they hold up goes on."""
        for each in self.by_name.values():
            each.heal()

    def status(self) -> tuple[FaultStatus, ...]:
        """Return the faults that are on."""
        now = self._arena.clock()
        return tuple(
            FaultStatus(
                where=where,
                kind=fault.kind,
                age=max(0.0, now - fault.began),
                left=None if fault.until == math.inf else max(0.0, fault.until - now),
                delay=fault.delay,
                times=fault.times,
                held_up=each.stuck,
            )
            for where, each in self.by_name.items()
            for fault in each.faults
        )

    async def run(self) -> None:
        """End faults whose time is over, until cancelled. Called by the allocator."""
        while True:
            self._changed = anyio.Event()
            until = min(each.expire() for each in self.by_name.values())
            with anyio.CancelScope(deadline=until):
                await self._changed.wait()

    def close(self) -> None:
        """End all faults, and take no more. Called by the allocator."""
        for each in self.by_name.values():
            each.close()

    def _tell(self, where: str, fault: Fault, on: bool) -> None:
        now = self._arena.clock()
        lasted = 0.0 if on else max(0.0, now - fault.began)
        name = _named(where, fault.kind, fault.delay, fault.times)
        if on:
            ends = "" if fault.until == math.inf else f", for {_brief(fault.until - fault.began)} s"
            level, kind, text = logging.WARNING, EventKind.FAULT, f"fault on: {name}{ends}"
        else:
            level, kind = logging.INFO, EventKind.HEALED
            text = f"fault off after {_brief(lasted)} s: {name}"
        self._told.append((where, CacheEvent(kind=kind, cache="", time=now, seconds=lasted, text=text)))
        fields = {"aslab_event": kind.value, "aslab_cache": "", "aslab_seconds": lasted, "aslab_fault": where}
        log.log(level, text, extra=fields)
        if self._arena.on_its_thread:
            self._follow()
        else:
            self._arena.call_soon(self._follow)

    def _follow(self) -> None:
        """Do what only the event loop's thread may, for all that was told: other threads' first, if they were."""
        while self._told:
            where, event = self._told.popleft()
            self.by_name[where].look_again()
            self._changed.set()
            self._arena.listeners.tell(event)


def _brief(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"


def _named(where: str, kind: FaultKind, delay: float, times: int) -> str:
    what = _WHAT[where]
    if kind is FaultKind.STUCK:
        return f"{what} stuck"
    if kind is FaultKind.SLOW:
        return f"{what} slow by {delay:g} s"
    return f"{what} failing {'once' if times == 1 else f'{times} times'}"
