# A map of the package, from the ground up; a module imports only from above it in this list:
#
#   _errors  _flags  _stats  _checks       words: errors, urgency, counters, checks of values
#   _histogram  _events  _health           what an operator sees: durations, events, ok or not
#   _sites  _variables  _holder            where a buffer was allocated, by which task; who holds it
#   _snapshots  _unix  _answering          the same for other processes, on a socket
#   _clients  _keywords  _letters          exceptions from client code; options as keywords; debug letters
#   _reach                                 which backends cannot refer to a client's objects
#   _fastpath/                             a hit and its free: views, slots, magazines, buffers
#   backends/  pressure/                   where memory comes from, and what reports that it is short
#   faults/                                injected faults
#   _options  _config                      the options, and their checks
#   _kmem/                                 the allocator itself, floor by floor
#   _lease  _home  _checked  _cache        what callers hold, and what their buffers return to
#   _faults                                faults in a running service
#   _reaper  _tasks                        the tasks that serve all caches
#   _requests                              what is asked at the socket, and the answers
#   _allocator                             what a service opens
#   arrays                                 numpy arrays over buffers
#   _gather  io/  protocols                streams and files, straight into buffers
#   testing/  emulation/                   checks, emulated backends
#   share/                                 buffers for other processes
#   observe/                               figures for Prometheus and OpenTelemetry
#   lab/  bench/  cli/                     simulations, measurements, commands
#
# docs/design.md gives the reasons.
"""An async slab allocator: pooled buffers for asyncio and trio services."""

from ._allocator import Allocator as Allocator
from ._allocator import open_allocator as open_allocator
from ._cache import Cache as Cache
from ._errors import BackendError as BackendError
from ._errors import BufferFreedError as BufferFreedError
from ._errors import CacheClosedError as CacheClosedError
from ._errors import ConfigError as ConfigError
from ._errors import ConsistencyError as ConsistencyError
from ._errors import ConstructorError as ConstructorError
from ._errors import CorruptionError as CorruptionError
from ._errors import DoubleFreeError as DoubleFreeError
from ._errors import ImpossibleTransition as ImpossibleTransition
from ._errors import PoisonError as PoisonError
from ._errors import RedZoneError as RedZoneError
from ._errors import SealedError as SealedError
from ._errors import SlabError as SlabError
from ._errors import TooManyWaiting as TooManyWaiting
from ._errors import WrongCacheError as WrongCacheError
from ._events import CacheEvent as CacheEvent
from ._events import EventKind as EventKind
from ._events import Events as Events
from ._fastpath import Buffer as Buffer
from ._fastpath import Lease as Lease
from ._fastpath import Pin as Pin
from ._faults import Faults as Faults
from ._faults import FaultStatus as FaultStatus
from ._flags import GFP as GFP
from ._flags import KM as KM
from ._flags import KMEM_CBRC as KMEM_CBRC
from ._flags import CacheFlags as CacheFlags
from ._gather import Gather as Gather
from ._gather import gather as gather
from ._health import Health as Health
from ._health import HealthState as HealthState
from ._histogram import Histogram as Histogram
from ._holder import Holder as Holder
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
    "CacheEvent",
    "CacheFlags",
    "CacheStats",
    "ConfigError",
    "ConsistencyError",
    "ConstructorError",
    "CorruptionError",
    "DoubleFreeError",
    "EventKind",
    "Events",
    "FaultStatus",
    "Faults",
    "Gather",
    "Health",
    "HealthState",
    "Histogram",
    "Holder",
    "ImpossibleTransition",
    "Lease",
    "ManyLease",
    "Pin",
    "PoisonError",
    "RedZoneError",
    "SealedError",
    "SlabError",
    "TooManyWaiting",
    "WrongCacheError",
    "gather",
    "open_allocator",
]
for _name in __all__:  # tracebacks and help() show the public name
    globals()[_name].__module__ = __name__
del _name
