# A map of the package, from the ground up; imports point up this list, never down:
#
#   _errors  _flags  _stats  _checks       words: errors, urgency, counters, checks of values
#   _clients  _keywords                    what a client's code may raise; options as keywords
#   _fastpath/                             a hit and its free: views, slots, magazines, buffers
#   backends/  pressure/                   where memory comes from, and what tells that it is short
#   _options  _config                      what may be configured, checked
#   _kmem/                                 the allocator proper, floor by floor
#   _lease  _home  _cache                  what callers hold, and what their buffers go back to
#   _reaper  _tasks                        the tasks that serve all caches
#   _allocator                             what a service opens
#   testing/  faults/  emulation/          checking, failing and pretending
#   share/                                 buffers for other processes
#   lab/  bench/  cli/                     simulations, measurements, commands
#
# docs/design.md has the same with the reasons.
"""An async slab allocator: pooled buffers for asyncio and trio services."""

from ._allocator import Allocator as Allocator
from ._allocator import open_allocator as open_allocator
from ._cache import Cache as Cache
from ._errors import BackendError as BackendError
from ._errors import BufferFreedError as BufferFreedError
from ._errors import CacheClosedError as CacheClosedError
from ._errors import ConfigError as ConfigError
from ._errors import ConstructorError as ConstructorError
from ._errors import ImpossibleTransition as ImpossibleTransition
from ._errors import SealedError as SealedError
from ._errors import SlabError as SlabError
from ._errors import WrongCacheError as WrongCacheError
from ._fastpath import Buffer as Buffer
from ._fastpath import Pin as Pin
from ._flags import GFP as GFP
from ._flags import KM as KM
from ._flags import KMEM_CBRC as KMEM_CBRC
from ._flags import CacheFlags as CacheFlags
from ._lease import Lease as Lease
from ._lease import ManyLease as ManyLease
from ._stats import AllocatorStats as AllocatorStats
from ._stats import CacheStats as CacheStats

__all__ = [
    "GFP",
    "KM",
    "KMEM_CBRC",
    "Allocator",
    "AllocatorStats",
    "BackendError",
    "Buffer",
    "BufferFreedError",
    "Cache",
    "CacheClosedError",
    "CacheFlags",
    "CacheStats",
    "ConfigError",
    "ConstructorError",
    "ImpossibleTransition",
    "Lease",
    "ManyLease",
    "Pin",
    "SealedError",
    "SlabError",
    "WrongCacheError",
    "open_allocator",
]
for _name in __all__:  # tracebacks and help() show the public name
    globals()[_name].__module__ = __name__
del _name
