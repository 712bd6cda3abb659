"""The fast path: an allocation that hits, and its free.

    Cache.alloc     magazine.pop() ──► Slot ──► a fresh Buffer
    Buffer.free     end the view ──► magazine.append(slot) ──► tell `Home` if anybody watches

This file is the only seam: nothing else in aslab imports the files behind it by name, so that a compiled module
may take their place. What is here knows nothing of slabs, waiters, pools or event loops, and imports nothing of
aslab but its errors. What a `Buffer` needs from its cache is the protocol `Home`.

    _views      who can still reach this memory
    _magazine   slots, the magazine, and the bits that say who watches frees
    _dlpack     the memory as a tensor, for other libraries
    _home       the protocol: what a buffer asks of its cache
    _buffer     the handle of one allocation, and pins
    _managed    handles that are counted, or may move

Any thread.
"""

from ._buffer import Buffer as Buffer
from ._buffer import Pin as Pin
from ._front import Front as Front
from ._home import Home as Home
from ._home import Origin as Origin
from ._lease import Lease as Lease
from ._magazine import CLOSED as CLOSED
from ._magazine import CONDEMNED as CONDEMNED
from ._magazine import FILLERS as FILLERS
from ._magazine import KEPT as KEPT
from ._magazine import LARGEST as LARGEST
from ._magazine import OPTIONS as OPTIONS
from ._magazine import REPACK as REPACK
from ._magazine import RESERVE as RESERVE
from ._magazine import SHORT as SHORT
from ._magazine import SMALLEST as SMALLEST
from ._magazine import WAITERS as WAITERS
from ._magazine import Magazine as Magazine
from ._magazine import Slot as Slot
from ._magazine import default_size as default_size
from ._managed import ManagedBuffer as ManagedBuffer
from ._native import COMPILED as COMPILED
from ._views import HAUNTED as HAUNTED
from ._views import Exported as Exported
from ._views import KeptView as KeptView
from ._views import exporter as exporter
from ._views import has_company as has_company
from ._views import lease_view as lease_view
