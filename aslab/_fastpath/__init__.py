"""The fast path: an allocation that hits, and its free.

    Front.alloc     magazine.pop() ──► Slot ──► a fresh Buffer
    Buffer.free     end the view ──► magazine.append(slot) ──► tell `Home` if anybody watches

This file is the only seam: nothing else in aslab imports the files behind it by name. What is here knows nothing
of slabs, waiters, pools or event loops, and imports nothing of aslab but its errors and flags. What a `Buffer`
needs from its cache is the protocol `Home`.

    _native     the compiled types, in place of those below
    _views      who can still reach this memory
    _magazine   slots, the magazine, and the bits that say who watches frees
    _dlpack     the memory as a tensor, for other libraries
    _home       the protocol: what a buffer asks of its cache
    _buffer     the handle of one allocation, and pins
    _lease      one allocation for the duration of a block
    _front      a cache's allocations that hit
    _managed    handles that are counted, or may move

The compiled types are in the module ``_core``, whose files _core.h lists. They are optional, and shortcuts alone:
each refusal, message and rare case is here, once. ``ASLAB_PURE=1`` does without them.

Any thread.
"""

from ._buffer import Buffer as Buffer
from ._buffer import Pin as Pin
from ._buffer import SeenBuffer as SeenBuffer
from ._front import Front as Front
from ._home import Home as Home
from ._home import Noted as Noted
from ._home import Origin as Origin
from ._lease import Lease as Lease
from ._magazine import CLOSED as CLOSED
from ._magazine import CONDEMNED as CONDEMNED
from ._magazine import FILLERS as FILLERS
from ._magazine import KEPT as KEPT
from ._magazine import LARGEST as LARGEST
from ._magazine import NOTED as NOTED
from ._magazine import OPTIONS as OPTIONS
from ._magazine import REPACK as REPACK
from ._magazine import RESERVE as RESERVE
from ._magazine import SHORT as SHORT
from ._magazine import SMALLEST as SMALLEST
from ._magazine import WAITERS as WAITERS
from ._magazine import EmergencySlot as EmergencySlot
from ._magazine import Magazine as Magazine
from ._magazine import Slot as Slot
from ._magazine import default_size as default_size
from ._managed import EmergencyBuffer as EmergencyBuffer
from ._managed import ManagedBuffer as ManagedBuffer
from ._native import COMPILED as COMPILED
from ._views import HAUNTED as HAUNTED
from ._views import Exported as Exported
from ._views import KeptView as KeptView
from ._views import exporter as exporter
from ._views import has_company as has_company
from ._views import is_kept as is_kept
from ._views import is_released as is_released
from ._views import lease_view as lease_view
