"""The three acts: what each is called, and how it is run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from anyio import to_thread

from ... import BackendError
from .._errors import why
from .._loops import Loop, run_on
from ._checksums import Checksums, checksums
from ._files import Where
from ._frames import frames
from ._other import Lost
from ._pair import Pair
from ._service import Settings
from ._stuck import stuck
from ._words import Told, Words, rate


@dataclass(frozen=True, slots=True)
class Failed(Told):
    """An act that could not be played."""

    error: str

    def words(self) -> Words:
        return [(f"Not played: {self.error}.", "")]

    def wrong(self) -> list[str]:
        return [self.error]


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One act."""

    number: int
    name: str
    """For programs."""
    title: str
    ways: tuple[str, str]
    """With aslab, and without."""
    unit: str
    """Of the figures that are shown live."""
    told: Callable[[float], str] = rate
    """Such a figure in words."""
    play: Callable[[Pair], Awaitable[Told]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long acts take, in seconds."""

    turn: float
    """Of each way in the first act."""
    stuck: float


USUAL = Length(turn=0.5, stuck=3.0)
QUICK = Length(turn=0.1, stuck=0.5)
TURNS = 3
"""Of each way in the first act."""
MOST = 5.0
"""Seconds for the third act where no path is given: files are left out rather than to take longer."""


def acts(where: Where, settings: Settings, length: Length) -> Iterator[Act]:
    """All three."""

    async def read(pair: Pair) -> Checksums:
        pair.note = "finding files"
        found = await to_thread.run_sync(where.find, abandon_on_cancel=True)
        pair.note = ""
        return await checksums(pair, found, settings, None if where.given else MOST)

    yield Act(
        number=1,
        name="frames",
        title="Frames to another process",
        ways=("aslab.share", "fresh segments"),
        unit="a second",
        play=lambda pair: frames(pair, TURNS, length.turn),
    )
    yield Act(
        number=2,
        name="stuck",
        title=f"Memory stuck for {length.stuck:g} s",
        ways=("aslab", "a plain pool"),
        unit="served",
        told="{:,.0f}".format,
        play=lambda pair: stuck(pair, length.stuck),
    )
    yield Act(
        number=3,
        name="checksums",
        title="Checksums",
        ways=("aslab", "a thread a file"),
        unit="files a second",
        play=read,
    )


def play(act: Act, loop: Loop, pair: Pair) -> Told:
    """Play one act, and return what it found.

    :raises ConfigError: if a buffer does not fit the limit
    """
    try:
        return run_on(loop, act.play, pair)
    except TimeoutError:  # an OSError without words
        return Failed("it took far too long")
    except OSError as exc:
        return Failed(why(exc))
    except (MemoryError, BackendError, Lost) as exc:
        return Failed(str(exc) or "out of memory")
