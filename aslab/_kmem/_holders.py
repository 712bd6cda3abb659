"""A cache, as the pool behind it sees it, and who holds what of it: notes of held buffers.

Several caches may share one pool. One in n allocations is noted, or each. A note says when a buffer was allocated,
by which task and where. Making one takes a microsecond or two, so by default one is made for about 8 MiB of
buffers handed out, the way heap profilers sample. A hit that is not noted pays one comparison: the magazine counts
hits anyway, and at the number that is `Magazine.due` it sends the next allocation on the detour, where the note is
made. The buffer then gets a managed handle, whose end ends the note; so other frees pay nothing.

An allocation that had to wait for long is always noted: where buffers are short it matters most who has them.

Always true:

    1. each note here is of a buffer that is held, or parked: the claim of its handle takes it out
    2. there are at most `MOST` notes, unless each allocation is noted: before there would be more, every other one
       is dropped, and from then on half as many are made
    3. a note refers to no buffer, task or frame
    4. an open cache is one of its pool's `members`. A member's counters count its own callers only; hits on the
       fast path, which shared pools do not use, are counted in the magazine

Any thread. `Note.end` also in finalisers: each step is one operation on a dict.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from .._config import CacheConfig
from .._fastpath import NOTED, Magazine
from .._histogram import Times
from .._holder import Holder
from .._sites import Site, here
from .._stats import Counters
from ._clock import Clock

LONG = 0.1
"""Seconds: a caller that has waited for so long is noted, whatever is sampled. SPL's patience with growth."""
MOST = 1000
"""Notes of one cache, where allocations are sampled."""
TRIES = 3
"""How often the oldest notes are read in place, should others change them meanwhile."""
_SPREAD = 0.6180339887498949
"""The golden ratio: the fractions of its multiples are spread evenly, so callers that take turns are met alike."""


class Note:
    """One held buffer."""

    __slots__ = ("_holders", "counted", "ended", "since", "site", "warned")

    def __init__(self, holders: Holders, since: float, site: Site, *, counted: bool) -> None:
        self._holders = holders
        self.since: float = since
        """When it was allocated, by the event loop's clock."""
        self.site: Site = site
        """By which task, and where."""
        self.counted: bool = counted
        """It was the n-th, so that how long it is held stands for the others."""
        self.ended: bool = False
        self.warned: bool = False
        """It has been held for `leak_after`, and that was reported."""

    def end(self, *, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        """Forget it, as the buffer is freed. Ending it again does nothing. Any thread, finalisers included."""
        if self.ended or ending():
            return
        self.ended = True
        holders = self._holders
        holders.notes.pop(self, None)
        if self.counted:
            holders.times.note(holders.clock() - self.since)


class Holders:
    """The notes of one cache.

    :param config: of a cache that has the magazine
    """

    __slots__ = ("_config", "_every", "_magazine", "_sample", "_turn", "clock", "notes", "times")

    def __init__(self, magazine: Magazine[Any], clock: Clock, config: CacheConfig[Any]) -> None:
        self._magazine = magazine
        self.clock: Clock = clock
        self._config = config
        self._sample = self._every = sample = config.holders_sample
        self._turn = 0.0
        self.notes: dict[Note, None] = {}
        """The oldest first. Any thread, finalisers included: each step is one operation."""
        self.times: Times = Times()
        """How long buffers were held that were noted because they were the n-th."""
        if sample:
            self._choose()

    def __len__(self) -> int:
        return len(self.notes)

    def note(self, site: Site | None = None) -> Note:
        """Note that the caller has a buffer now, and choose the next one.

        :param site: where the caller is, if that is known already
        """
        magazine, notes = self._magazine, self.notes
        counted = magazine.due < magazine.hits
        if counted and self._sample > 1:
            self._choose()
            if len(notes) >= MOST:
                self._every *= 2
            elif self._every > self._sample and len(notes) < MOST // 4:
                self._every //= 2
        if len(notes) >= MOST and self._sample > 1:
            for one in list(notes)[1::2]:
                notes.pop(one, None)
        note = Note(self, self.clock(), site or here(3), counted=counted)
        notes[note] = None
        return note

    @property
    def oldest(self) -> float:
        """For how many seconds the oldest buffer that was noted has been held; 0 if there is none."""
        try:
            since = next(iter(self.notes)).since
        except StopIteration:
            return 0.0
        except RuntimeError:  # another thread has just added or ended one
            since = min((note.since for note in list(self.notes)), default=math.inf)
        return max(0.0, self.clock() - since)

    def all(self, most: int | None = None) -> list[Holder]:
        """Return the buffers that were noted and are held, the oldest first, ``most`` at most."""
        now = self.clock()
        return [self._holder(note, now) for note in self._first(most)]

    def _first(self, most: int | None) -> list[Note]:
        """Return the oldest notes. A few are had without a copy of all: very many callers may time out at once."""
        for _ in range(0 if most is None else TRIES):
            with suppress(RuntimeError):  # another thread or a finaliser changes them
                return list(islice(self.notes, most))
        return list(self.notes)[:most]

    def overdue(self) -> Iterator[Holder]:
        """Give each buffer held for ``leak_after`` that was not given before. Other tasks may run in between."""
        now, leak_after = self.clock(), self._config.leak_after
        for note in list(self.notes) if leak_after else ():
            if now - note.since < leak_after:
                break
            if not note.warned and not note.ended:
                note.warned = True
                yield self._holder(note, now)

    def _holder(self, note: Note, now: float) -> Holder:
        return Holder(
            cache=self._config.name,
            size=self._config.shape.size,
            since=note.since,
            seconds=max(0.0, now - note.since),
            task=note.site.task,
            place=note.site.place,
            stack=note.site.stack,
        )

    def _choose(self) -> None:
        """Choose the next allocation to be noted, on average the n-th from now on."""
        magazine = self._magazine
        self._turn = (self._turn + _SPREAD) % 1.0
        others = int(self._turn * (2 * self._every - 1))
        magazine.due = magazine.hits + others
        if others:
            magazine.let_pop(NOTED)
        else:
            magazine.divert(NOTED)


@dataclass(slots=True, eq=False)
class Member:
    """One cache of a pool."""

    name: str
    holders: Holders
    """Who holds its buffers."""
    reclaim: Callable[[int], int] | None = None
    """The client's callback: asked to free that many objects, it returns how many it has freed."""
    counters: Counters = field(default_factory=Counters)


def oldest(of: Iterable[Holders], most: int | None = None) -> list[Holder]:
    """Return the holders of several caches, the oldest first, ``most`` at most. Any thread."""
    merged = heapq.merge(*(one.all(most) for one in of if len(one)), key=lambda holder: holder.since)
    return list(merged)[:most]


def who_holds(of: Iterable[Holders], most: int = 3) -> list[str]:
    """Return a line for each of the oldest holders, for error messages."""
    return [f"  {holder}" for holder in oldest(of, most)]
