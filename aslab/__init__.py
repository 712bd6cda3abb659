# A map of the package, from what a service sees to what lies beneath:
#
#   _allocator  _cache  _lease             the public objects
#   _fastpath/                             the handle of an allocation, and the magazine: a hit and its free
#   _flags  _errors  _stats  _state        their words: urgency, errors, counters, marks
#   _depot  _slab                          slabs, behind the magazine
#   _lingering  _parking  _orphans         memory that somebody may still reach after its owner has gone
#   _pool                                  brings together, for one cache or several, what follows
#   _line  _waiting  _lateness  _blocking  who waits, for how long, and from which thread
#   _emergency  _permits  _attempts        the way out of waiting, and its bound
#   _passing  _reserve  _claims            who comes first
#   _patience                              how long the others wait
#   _growth  _worker  _budget  _starved    getting slabs, within limits that are fair
#   _reclaim  _demand  _relief             giving them back: what is idle, what can be spared
#   _move                                  moving objects so that whole slabs go
#   _engine  _supply  _bell  _clock        the tasks that do it
#   _snapshot  _clients                    what messages say; what a client's code may raise
#   backends/  faults/  testing/           where memory comes from; making it fail; checking that it works
#   pressure/                              what tells that memory is short
#   emulation/  lab/                       a machine short of memory; simulated time and scenarios
#   cli/  bench/                           the commands
#
# Imports point downwards only.
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
