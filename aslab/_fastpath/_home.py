"""Home: what a buffer asks of the cache it came from. The one way up from the fast path.

A class that is a `Home` derives from `Origin`, so that compiled code finds the magazine without asking.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

from ._magazine import Magazine, Slot
from ._native import compiled
from ._views import KeptView

T = TypeVar("T")


@compiled
class Origin(Generic[T]):
    """What each allocation and free needs of a home at once."""

    __slots__ = ("lingering", "magazine", "movable", "seen", "size")

    magazine: Magazine[T]
    """Where a free puts the slot."""
    size: int
    """Bytes of one object."""
    seen: bool
    """Whether the garbage collector must see its buffers, as callbacks or backends may refer to one: for compiled
    types."""
    movable: bool
    """Whether its objects may move, and an allocation takes nothing else but the magazine: for compiled types."""
    lingering: dict[Any, object] | None
    """The slots that linger, if neither their free nor their return takes more than a place in it: for compiled
    types."""


class Noted(Protocol):
    """What is known of who holds a buffer."""

    @property
    def site(self) -> object:
        """By which task it was allocated, and where: as text."""
        ...

    def end(self) -> None:
        """Forget it. Any thread, finalisers included."""
        ...


class Home(Protocol[T]):
    """Where a buffer goes back to. Any thread may call any of it; `collected` and `park` at any moment."""

    name: str
    """The cache's name, for messages."""
    size: int
    """Bytes of one object."""
    ctor: Callable[[memoryview], T] | None
    """What builds the object of a slot."""
    magazine: Magazine[T]
    """Where a free puts the slot."""
    guard: AbstractContextManager[Any]
    """Held while the handle of a managed buffer changes hands. Reentrant: a finaliser may come in between."""

    @property
    def cache(self) -> Any:
        """The cache itself; only `Buffer.cache` asks for it."""
        ...

    def hand_out(self, slot: Slot[T], note: Noted | None) -> Any:
        """A new handle of a slot: a `Buffer`, for the mover."""
        ...

    def settle(self) -> None:
        """A free has put a slot into the magazine, which is watched, or over its capacity now."""
        ...

    def take_back(self, slot: Slot[T]) -> None:
        """A free of a slot that needs more than the magazine."""
        ...

    def collected(self, slot: Slot[T]) -> None:
        """The garbage collector found a buffer that was never freed. Takes no lock."""
        ...

    def park(self, slot: Slot[T], emergency: bool, note: Noted | None) -> None:
        """A handle is gone while its memory is still exported: keep the slot until it is not. Takes no lock."""
        ...

    def view_gone(self, kept: KeptView) -> None:
        """The object of a view that had ended is gone, too."""
        ...

    def look_at_lingering(self) -> None:
        """A handle that exported its own memory is gone: slots that linger may be free now."""
        ...

    def count_return(self, emergency: bool) -> None:
        """Count a managed buffer whose handle has ended."""
        ...

    def count_move(self) -> None:
        """Count an emergency object that was moved into a slab."""
        ...
