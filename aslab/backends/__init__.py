"""Where memory comes from: the protocol, and the backends on real memory.

`Mmap` is for slabs, `SharedMemory` for what other processes read too, `Pinned` for slabs that a GPU copies from,
`Heap` for emergency objects, `Callback` for anything else. To write your own, implement the three methods of
`Backend`; `aslab.testing.check_backend` checks the contract, and `run_blocking` runs blocking calls in threads
that can be abandoned.
"""

from ._callback import Callback as Callback
from ._cuda import CudaDriver as CudaDriver
from ._cuda import Driver as Driver
from ._heap import Heap as Heap
from ._mmap import Mmap as Mmap
from ._pinned import Pinned as Pinned
from ._protocol import Backend as Backend
from ._protocol import Batching as Batching
from ._protocol import Owning as Owning
from ._protocol import Region as Region
from ._protocol import Streaming as Streaming
from ._shared import Segment as Segment
from ._shared import SharedMemory as SharedMemory
from ._threads import run_blocking as run_blocking

__all__ = [
    "Backend",
    "Batching",
    "Callback",
    "CudaDriver",
    "Driver",
    "Heap",
    "Mmap",
    "Owning",
    "Pinned",
    "Region",
    "Segment",
    "SharedMemory",
    "Streaming",
    "run_blocking",
]
