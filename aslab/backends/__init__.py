"""Where memory comes from: the protocol, and the backends on real memory.

`Mmap` for slabs, `Heap` for emergency objects, `Callback` for anything else. Your own is any class
with the three methods of `Backend`; `aslab.testing.check_backend` tells whether it keeps the
contract, and `run_blocking` is the way to a thread that can be walked away from.
"""

from ._callback import Callback as Callback
from ._heap import Heap as Heap
from ._mmap import Mmap as Mmap
from ._protocol import Backend as Backend
from ._protocol import Region as Region
from ._threads import run_blocking as run_blocking

__all__ = ["Backend", "Callback", "Heap", "Mmap", "Region", "run_blocking"]
