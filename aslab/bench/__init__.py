"""``aslab bench``: what things cost, measured here and now.

Machines are shared and noisy, so what is compared runs interleaved, and what counts are ratios of values of the
same round, with their spread.

    _app                         the command, and the options that all have
    _measured                    turns, rounds, rows: what a module here returns, and what comes of it
    _table  _record  _plot       the rows for people, for programs and as a picture
    _rivals                      pools that people build themselves

    _pair  _lease                alloc and free on a hit; a block that holds a buffer
    _handover  _waiters          buffers passed on among tasks; with many tasks
    _growth                      from an empty cache to much memory, against a thread that only faults it in
    _stall  _move  _scale        does growth stall the loop, or a move, or anything when there is a lot of it?
    _many  _in_line              what operations cost where there are very many of something, for `scale`
    _emergency  _emergency_free  emergency objects while growth is stuck; freeing one of many
    _frames                      frames from one process to another
    _index                       how emergency objects are looked up
    _lab                         how fast the lab is
    _memory                      fresh memory and pooled memory, and the first touch of a large slab
    _service  _uploads           an HTTP service that takes uploads, and its memory; the service itself
    _scrape  _scraped            figures scraped while growth is stuck and the loop is busy; the service itself
    _demo                        the checksum service of ``aslab demo``, compared with plain threads and xargs
"""

from . import _demo as _demo
from . import _emergency as _emergency
from . import _emergency_free as _emergency_free
from . import _frames as _frames
from . import _growth as _growth
from . import _handover as _handover
from . import _index as _index
from . import _lab as _lab
from . import _lease as _lease
from . import _memory as _memory
from . import _move as _move
from . import _pair as _pair
from . import _scale as _scale
from . import _scrape as _scrape
from . import _service as _service
from . import _stall as _stall
from . import _waiters as _waiters
from ._app import app as app
from ._app import names as names

__all__ = ["app", "names"]
