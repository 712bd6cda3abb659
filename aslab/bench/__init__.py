"""``aslab bench``: what things cost, measured here and now.

Machines are shared and noisy, so what is compared runs interleaved in one process, and the ratios are what
counts. Times are the best of several rounds.

    _app                         the command, and its tables
    _pair  _handover  _waiters   alloc and free on a hit; among waiting tasks; with many of them
    _stall  _move  _scale        does growth stall the loop, or a move, or anything when there is a lot of it?
    _many                        what operations cost where there are very many of something, for `scale`
    _growth                      growth from an empty cache, against a thread that only faults in memory
    _emergency  _emergency_free  emergency objects while growth is stuck; freeing one of many
    _frames                      frames from one process to another
    _index                       how emergency objects are looked up
    _lab                         how fast the lab is
    _memory                      fresh memory and pooled memory, and the first touch of a large slab
"""

from . import _emergency as _emergency
from . import _emergency_free as _emergency_free
from . import _frames as _frames
from . import _growth as _growth
from . import _handover as _handover
from . import _index as _index
from . import _lab as _lab
from . import _memory as _memory
from . import _move as _move
from . import _pair as _pair
from . import _scale as _scale
from . import _stall as _stall
from . import _waiters as _waiters
from ._app import app as app

__all__ = ["app"]
