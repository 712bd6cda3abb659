"""Buffer: the handle of one allocation.

A slot is used again and again; a handle is used once. After `Buffer.free` the handle is dead for good, so code
that still holds it cannot reach the next owner's memory. And memory that somebody can still write to, through a
numpy array, a slice, or a second memoryview, is not freed at all: `BufferError`.

Two attributes tell the state of a handle, so that the hot path sets as little as possible:

    _slot present, _view None       allocated, never looked at
    _slot present, _view a view     allocated
    _slot absent                    freed, or being freed by some thread right now

Always true between calls:

1. Deleting ``_slot`` is the claim. The interpreter makes it atomic: of two threads that free a buffer, one gets an
   AttributeError, and the other owns the slot.
2. Once ``_view`` was a view it is never None again, unless a move makes it so (_managed.py).
3. A free looks for a view after its claim. `Buffer.view` looks for ``_slot`` after storing the view and before
   returning it. So either the free finds the view, or nobody gets it.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from gc import get_referents
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, SupportsIndex, TypeVar, cast

from .._errors import BufferFreedError
from ._dlpack import CPU, capsule
from ._home import Home, Noted
from ._magazine import Slot
from ._native import compiled
from ._views import company, has_company, is_kept, is_released, lease_view

if TYPE_CHECKING:
    from typing import Self

    from .._cache import Cache

T = TypeVar("T")

_FREED, _LENT = memoryview(b""), memoryview(b"")
"""Take the place of the view once a handle is freed; the second if its own buffer protocol was used."""
_OTHERS = "a memoryview or an array that was made of it earlier, a pin, or a DLPack tensor is alive"


@compiled
class Buffer(Generic[T]):
    """One allocation. Made by `Cache.alloc` and its kin, never by hand.

    Every method may be called from any thread, none suspends.
    """

    __slots__ = ("__weakref__", "_home", "_lent", "_slot", "_view")

    _home: Home[T]
    _slot: Slot[T]
    _view: memoryview | None
    _lent: tuple[object, ...]
    """The managed buffers behind its own buffer protocol; absent until that is used."""

    emergency: bool = False
    """True for an emergency object: one that did not come out of a slab."""
    _note: Noted | None = None
    """Who holds it, if that was noted: then it is a `ManagedBuffer`."""

    @property
    def view(self) -> memoryview:
        """The memory: writable, exactly ``size`` bytes, at a multiple of ``align``.

        Made on first use; released by `free`, so that using it later raises ValueError.

        :raises BufferFreedError: after `free`
        """
        view = self._view
        if view is None or is_released(view):  # by the caller, as ``with buf.view:`` does
            return self._look()
        if not hasattr(self, "_slot"):
            raise self._freed_error()
        return view

    def pin(self) -> Pin:
        """``with buf.pin() as view:`` is the memory for the time of a block, for any buffer.

        In a ``movable`` cache this is how to reach the memory: the buffer stays where it is during the block, and
        may move between blocks. The view ends with the block. A slice or an array of it that outlives the block
        keeps the buffer where it is.

        :raises BufferFreedError: on entry, after `free`
        """
        return Pin(self)

    @property
    def obj(self) -> T:
        """What the cache's ``ctor`` built in this slot; the view where there is no ``ctor``.

        A constructed object belongs to its slot and serves one owner after another: do not keep it.

        :raises BufferFreedError: after `free`
        """
        slot = self._allocated()
        if self._home.ctor is None:
            return cast("T", self.view)
        return cast("T", slot.obj)

    @property
    def address(self) -> int:
        """Where the memory starts.

        :raises BufferFreedError: after `free`
        """
        return self._allocated().address

    @property
    def cache(self) -> Cache[T]:
        """The cache it was allocated from."""
        cache: Cache[T] = self._home.cache
        return cache

    def __len__(self) -> int:
        return self._home.size

    def free(self) -> None:
        """Give the memory back to the cache, or to a waiting caller if there is one.

        :raises BufferFreedError: if it was freed before
        :raises BufferError: if something still exports the memory (a numpy array, a slice of the view, a
            pending ``recv_into``): the buffer stays allocated. Keeping the view object itself is allowed, but
            while it lives the memory is reused last and not released (`CacheStats.obj_lingering`).
        """
        if type(self) is not Buffer and type(self) is not SeenBuffer:  # by ``Buffer.free(buf)``, or by `super`
            self._free()
            return
        # The hot path: `_claim` and the end of `Home.take_back`, written out.
        try:
            slot = self._slot
            del self._slot
        except AttributeError:
            raise self._freed_error() from None
        if self._view is None:
            self._view = _FREED
        else:
            self._end_view(slot)
            if slot.kept:
                self._home.take_back(slot)
                return
        magazine = self._home.magazine
        magazine.append(slot)
        if magazine.watch or len(magazine) > magazine.capacity:
            self._home.settle()

    def _free(self) -> None:
        """`free` as the class of a buffer has it, for a `free` that was called as that of another class."""
        self._home.take_back(self._claim())

    def __enter__(self) -> Self:
        self._allocated()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if not hasattr(self, "_slot"):
            return
        try:
            self.free()
        except BufferError:
            # An exception on its way out often keeps a slice alive in its frames. Ours must not hide it;
            # the memory comes back when the slice goes.
            if exc is None:
                raise
            self._abandon()

    def __repr__(self) -> str:
        home, slot = getattr(self, "_home", None), getattr(self, "_slot", None)
        if home is None:
            return "<Buffer, not allocated>"
        state = "freed" if slot is None else f"at {slot.address:#x}"
        kind = ", emergency" if self.emergency else ""
        return f"<Buffer of {home.name!r}, {len(self)} bytes, {state}{kind}>"

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        """Refuse: two handles of one place would both free it. (copy, deepcopy and pickle end here.)

        :raises TypeError: always
        """
        raise TypeError(
            "a Buffer cannot be copied or pickled: it is the one handle of its memory, bytes(buf.view) copies that"
        )

    if sys.version_info >= (3, 12):
        # Each consumer gets a view of its own. With __release_buffer__ numpy keeps it; without, numpy would
        # release it at once and keep only the handle.
        def __buffer__(self, flags: int, /) -> memoryview:
            view = self.view
            (managed,) = get_referents(view)
            lent = getattr(self, "_lent", ())
            if managed not in lent:  # a consumer that keeps the handle, and no export, counts as keeping the view
                self._lent = (*lent, managed)
            return memoryview(view)

        def __release_buffer__(self, view: memoryview, /) -> None:
            view.release()

    def __dlpack__(self, **options: Any) -> Any:
        """The memory as a tensor of bytes: ``torch.from_dlpack(buf)``, ``np.from_dlpack(buf)``. Needs numpy.

        Not copied. The tensor, and what shares its memory, lasts as an array made inside of a `pin` does: `free`
        raises BufferError until it is gone.

        :param options: those of the array API standard
        :raises BufferFreedError: after `free`
        """
        return capsule(self.pin(), options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU

    def __del__(self) -> None:
        try:
            if self._view is _FREED:
                return
            if self._view is _LENT:
                del self._lent
                self._home.look_at_lingering()
                return
            self._let_go()
            name, whose = self._home.name, self._whose()
        except (AttributeError, BufferFreedError):  # never allocated, or freed by another thread just now
            return
        text = f"cache {name!r}: a Buffer was garbage-collected without free(){whose}"
        warnings.warn(text, ResourceWarning, 2, source=self)

    def _whose(self) -> str:
        """Say who allocated it, if that is known."""
        return "" if self._note is None else f"; it was allocated by {self._note.site}"

    def _look(self) -> memoryview:
        """Make the view, or make it again after the caller has released it."""
        slot = self._allocated()
        fresh = lease_view(slot.exporter)
        view = old = self._view
        if old is None or is_released(old):
            if old is not None and is_kept(old, 4):  # the handle, `view`, and two here
                slot.remember(old, self._home.view_gone)
            view = self._view
            if view is old:
                view = self._view = fresh
        if not hasattr(self, "_slot"):  # another thread freed the buffer meanwhile
            fresh.release()
            raise self._freed_error()
        if view is not fresh:
            fresh.release()
        return cast("memoryview", view)

    def _pinned_view(self) -> memoryview:
        """Return a separate view, and have `free` look for it."""
        _ = self.view
        return self._pin()

    def _pin(self) -> memoryview:
        slot = self._allocated()
        view = lease_view(slot.exporter)
        if not hasattr(self, "_slot"):  # as in `_look`
            view.release()
            raise self._freed_error()
        slot.remember(view, self._home.view_gone)
        return view

    def _allocated(self) -> Slot[T]:
        try:
            return self._slot
        except AttributeError:
            raise self._freed_error() from None

    def _freed_error(self) -> BufferFreedError:
        home = getattr(self, "_home", None)
        return BufferFreedError(f"this buffer of cache {home.name!r} was freed" if home else "not allocated")

    def _claim(self, *, quiet: bool = False) -> Slot[T]:
        """End the handle and its view. The caller owns the slot then. ``quiet``: nobody reads the error."""
        slot = self._allocated()
        try:
            del self._slot
        except AttributeError:
            raise self._freed_error() from None
        if self._view is None:
            self._view = _FREED
        else:
            self._end_view(slot, quiet=quiet)
        return slot

    def _end_view(self, slot: Slot[T], *, quiet: bool = False) -> None:
        """Release the view. If somebody else exports the memory, restore the handle and raise."""
        view = cast("memoryview", self._view)
        try:
            if not is_released(view):
                if has_company(view):
                    raise BufferError("" if quiet else company(view))
                if slot.in_use(1):
                    raise BufferError(_OTHERS)
                view.release()
            if slot.in_use():  # made by another thread just now
                self._view = lease_view(slot.exporter)  # not None: the next `free` has to look, too
                if is_kept(view):
                    slot.remember(view, self._home.view_gone)
                raise BufferError(_OTHERS)
        except BufferError as exc:
            self._slot = slot
            raise self._refusal(str(exc)) from None
        self._view = _LENT if hasattr(self, "_lent") else _FREED
        if is_kept(view):
            slot.remember(view, self._home.view_gone)

    def _refusal(self, why: str) -> BufferError:
        return BufferError(
            f"cache {self._home.name!r}: the buffer is still in use and stays allocated: {why}. Release slices "
            "(`with buf.view[:n] as part:`), del arrays, await what reads into it; then free() again"
        )

    def _let_go(self) -> None:
        """Give the memory back as soon as no export is left. Safe in a finaliser: takes no lock."""
        try:
            slot = self._claim(quiet=True)
        except BufferError:
            pass  # the error's frames hold the view, so `_park` has to wait until they are gone
        else:
            self._home.collected(slot)
            return
        self._park()

    def _abandon(self) -> None:
        """As `_let_go`, by a caller and not by the garbage collector."""
        self._let_go()

    def _park(self) -> None:
        try:
            slot = self._slot
            del self._slot
        except AttributeError:  # another thread has freed it just now
            return
        view, self._view = self._view, _LENT if hasattr(self, "_lent") else _FREED
        if view is not None:  # a slice that is released later may be kept, too
            slot.remember(view, self._home.view_gone)
        del view
        self._home.park(slot, self.emergency, self._note)


@compiled
class SeenBuffer(Buffer[T]):
    """A buffer through which a client's own objects can be reached, such as the callbacks of its cache.

    The garbage collector sees it, compiled or not.
    """

    __slots__ = ()


@compiled
class Pin:
    """What `Buffer.pin` returns. Reentrant, and can be entered again.

    A view refers to its slot's exporter, and a slot whose exporter is in use never moves. So a pin is a view with
    an end: nothing is counted, and a slice or an array that outlives it keeps the buffer in place until it goes.
    """

    __slots__ = ("_buffer", "_views")

    def __init__(self, buffer: Buffer[Any]) -> None:
        self._buffer = buffer
        self._views: list[memoryview] = []

    def __enter__(self) -> memoryview:
        view = self._buffer._pinned_view()
        self._views.append(view)
        return view

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with contextlib.suppress(BufferError):  # an array outlives the block: the pin lasts as long as it does
            self._views.pop().release()
