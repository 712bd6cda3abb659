"""The words a caller speaks: how urgent an allocation is, and what its memory may cost.

``KM`` is what a caller of a cache says, ``GFP`` what a cache says to a backend. The split is the
kernel's own: kmem's KM_* flags (illumos, OpenZFS SPL) are translated into Linux' GFP_* flags when
a slab or an emergency object has to be got.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING


class KM(enum.Enum):
    """How urgent an allocation is (kmem's KM_* flags)."""

    SLEEP = "sleep"
    """Wait for as long as it takes; never fails for want of memory."""
    NOSLEEP = "nosleep"
    """Never wait: an object at once, or `anyio.WouldBlock`."""
    PUSHPAGE = "pushpage"
    """As SLEEP, but served before: for callers that are part of writing memory back."""
    MEMALLOC = "memalloc"
    """As SLEEP, but served first of all: for callers that hold memory, and give it back once they have this.

    The last of what is set aside is theirs alone, so that somebody can always finish. Say it only of work that
    ends without asking for more (Linux has the same rule for PF_MEMALLOC).
    """

    if not TYPE_CHECKING:
        __hash__ = object.__hash__  # an Enum's own is Python, and each caller that waits looks its level up


LEVEL = {KM.SLEEP: 2, KM.NOSLEEP: 2, KM.PUSHPAGE: 1, KM.MEMALLOC: 0}
"""Who is served before whom: the smaller first."""
FINISHES, URGENT, ORDINARY = 0, 1, 2
"""The levels by name: gives memory back, is part of that, anybody."""


class KMEM_CBRC(enum.Enum):  # noqa: N801  (the name is illumos')
    """What a move callback answers (kmem_cbrc_t of illumos). It frees neither object itself."""

    YES = "yes"
    """Moved: the client uses the new object. The old one is freed."""
    NO = "no"
    """Not moved, and no use to ask again soon: the new one is freed, the slab left alone."""
    LATER = "later"
    """Not moved now: the new one is freed. The third LATER for one slab is a NO."""
    DONT_NEED = "dont_need"
    """The client needs it no more: both are freed."""
    DONT_KNOW = "dont_know"
    """The client does not know this object, or not any more: the new one is freed."""


class GFP(enum.Flag):
    """What a backend may do to find memory (Linux' GFP flags, by their meaning).

    Each bit is a permission; fewer bits make a request that is safer and fails sooner.
    """

    NOWAIT = 0
    """Nothing that waits."""
    RECLAIM = enum.auto()
    """May wait, and reclaim clean memory."""
    IO = enum.auto()
    """May start I/O."""
    FS = enum.auto()
    """May call into filesystems."""
    MEMALLOC = enum.auto()
    """May use the last reserve."""
    HIGH = enum.auto()
    """May use a part of the reserve (Linux: half of it)."""
    NORETRY = enum.auto()
    """Fails rather than wait for what others free."""
    NOIO = RECLAIM
    NOFS = RECLAIM | IO
    KERNEL = RECLAIM | IO | FS


class CacheFlags(enum.Flag):
    """Choices for a whole cache; the bit numbers are SPL's."""

    NOEMERGENCY = 1 << 9
    """Never make emergency objects: callers wait for growth or for a free."""


def gfp_for(flags: KM, *, alone: bool = False) -> GFP:
    """What growth on behalf of such a caller may do.

    PUSHPAGE and MEMALLOC callers are themselves part of writing memory back, so growth for them must not wait for
    that (SPL: such callers must not start I/O). The reserve is for emergency objects: a stuck grow that had taken
    all of it would leave nothing for those, and nothing for the driver of the disk. SPL adds __GFP_HIGH for slabs,
    too; so does this where a cache has nothing but slabs, ``alone``.
    """
    if LEVEL[flags] == ORDINARY:
        return GFP.KERNEL
    return GFP.NOIO | GFP.HIGH if alone else GFP.NOIO


def gfp_for_emergency(flags: KM) -> GFP:
    """What making an emergency object for such a caller may do: never I/O, whatever the caller said.

    For PUSHPAGE and MEMALLOC it may use a part of the reserve. Without that it fails just where it is needed, as a
    stuck grow may hold all that is above the reserve. The last of it stays for whom these depend on themselves,
    such as the driver of a disk: with GFP.MEMALLOC the writes of the story had buffers, and none was ever made.
    """
    gfp = GFP.NOWAIT if flags is KM.NOSLEEP else GFP.NOIO
    return gfp if LEVEL[flags] == ORDINARY else gfp | GFP.HIGH
