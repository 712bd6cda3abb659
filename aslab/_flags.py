"""How urgent an allocation is, and what a backend may do to find memory for it.

A caller passes ``KM`` to a cache, and a cache passes ``GFP`` to a backend. The kernel makes the same split: kmem's
KM_* flags (illumos, OpenZFS SPL) are translated into Linux' GFP_* flags when a slab or an emergency object is
needed.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING


class KM(enum.Enum):
    """How urgent an allocation is (kmem's KM_* flags)."""

    SLEEP = "sleep"
    """Wait for as long as it takes; never fail because memory is short."""
    NOSLEEP = "nosleep"
    """Never wait: return an object at once or raise `anyio.WouldBlock`."""
    PUSHPAGE = "pushpage"
    """Like SLEEP, but served earlier: for callers that help to write memory back."""
    MEMALLOC = "memalloc"
    """Like SLEEP, but served first: for callers that hold memory and give it back once they have this object.

    The last object of the reserve is theirs alone, so that one of them can always finish. Use it only for work
    that ends without asking for more (Linux has the same rule for PF_MEMALLOC).
    """

    if not TYPE_CHECKING:
        __hash__ = object.__hash__  # Enum's own is written in Python; every caller that waits looks up its level


LEVEL = {KM.SLEEP: 2, KM.NOSLEEP: 2, KM.PUSHPAGE: 1, KM.MEMALLOC: 0}
"""The order of service: the smallest level first."""
FINISHES, URGENT, ORDINARY = 0, 1, 2
"""The levels by name: MEMALLOC, PUSHPAGE, everyone else."""


class KMEM_CBRC(enum.Enum):  # noqa: N801  (the name is illumos')
    """What a move callback returns (kmem_cbrc_t of illumos). The callback itself frees neither object."""

    YES = "yes"
    """Moved: the client now uses the new object; the old one is freed."""
    NO = "no"
    """Not moved, and do not ask again soon: the new object is freed, and the slab is left alone."""
    LATER = "later"
    """Not moved now: the new object is freed. The third LATER for a slab counts as NO."""
    DONT_NEED = "dont_need"
    """The client no longer needs the object: both are freed."""
    DONT_KNOW = "dont_know"
    """The client does not know the object, or no longer does: the new one is freed."""


class GFP(enum.Flag):
    """What a backend may do to find memory (named after Linux' GFP flags, with their meaning).

    Each bit but NORETRY is a permission. A request with fewer of them is safer and fails sooner.
    """

    NOWAIT = 0
    """No waiting at all."""
    RECLAIM = enum.auto()
    """May wait, and may reclaim clean memory."""
    IO = enum.auto()
    """May start I/O."""
    FS = enum.auto()
    """May call into filesystems."""
    MEMALLOC = enum.auto()
    """May use all of the reserve."""
    HIGH = enum.auto()
    """May use part of the reserve (Linux: half of it)."""
    NORETRY = enum.auto()
    """Must fail rather than wait for others to free memory."""
    NOIO = RECLAIM
    """Everything but I/O and filesystems."""
    NOFS = RECLAIM | IO
    """Everything but filesystems."""
    KERNEL = RECLAIM | IO | FS
    """Everything but the reserve: what an ordinary caller may do."""


class CacheFlags(enum.Flag):
    """Options of a whole cache; the bit numbers are SPL's."""

    NOEMERGENCY = 1 << 9
    """Never make emergency objects: callers wait for growth or for a free."""


def gfp_for(flags: KM, *, alone: bool = False) -> GFP:
    """What growth may do on behalf of a caller.

    PUSHPAGE and MEMALLOC callers help to write memory back, so growth for them must not wait for that (SPL: such
    callers must not start I/O). Growth leaves the backend's reserve to emergency objects: a stuck grow that had
    used it up would leave nothing for them or for the disk driver. SPL adds __GFP_HIGH for slabs too; here only
    a cache without emergency objects does, ``alone``.
    """
    if LEVEL[flags] == ORDINARY:
        return GFP.KERNEL
    return GFP.NOIO | GFP.HIGH if alone else GFP.NOIO


def gfp_for_emergency(flags: KM) -> GFP:
    """What the allocation of an emergency object may do on behalf of a caller: never I/O.

    For PUSHPAGE and MEMALLOC it may use part of the backend's reserve. Otherwise it would fail exactly when it
    is needed, because a stuck grow can hold everything above the reserve. The rest of the reserve stays for what
    these callers depend on, such as the disk driver: with GFP.MEMALLOC the writes of the story had buffers but
    the driver had no memory to carry them out.
    """
    gfp = GFP.NOWAIT if flags is KM.NOSLEEP else GFP.NOIO
    return gfp if LEVEL[flags] == ORDINARY else gfp | GFP.HIGH


GFP_FOR_EMERGENCY = {flags: gfp_for_emergency(flags) for flags in KM}
