"""A machine short of memory: backends whose delays and failures come from a model of Linux.

They hand out real memory, but their delays pass on the event loop's clock, so a run in simulated time is the
same each time:

    memory = PhysicalMemory(64 * 256)  # 64 MiB
    PageCache(memory, clean=4000, dirty=8000, writeback=0.01)
    memory.fragment(1 / 32)  # no block of order 5 is left
    slabs, emergency = Vmalloc(memory, per_page=1e-6, lock=1e-4), Kmalloc(memory, vmap=True)
    async with aslab.open_allocator(slabs=slabs, emergency=emergency) as kmem: ...
"""

from ._address_space import AddressSpace as AddressSpace
from ._buddy import Buddy as Buddy
from ._kmalloc import Kmalloc as Kmalloc
from ._memory import Block as Block
from ._memory import PageAllocationFailure as PageAllocationFailure
from ._memory import PhysicalMemory as PhysicalMemory
from ._memory import Pins as Pins
from ._page_cache import PageCache as PageCache
from ._shrinker import Shrinker as Shrinker
from ._vmalloc import Vmalloc as Vmalloc

__all__ = [
    "AddressSpace",
    "Block",
    "Buddy",
    "Kmalloc",
    "PageAllocationFailure",
    "PageCache",
    "PhysicalMemory",
    "Pins",
    "Shrinker",
    "Vmalloc",
]
