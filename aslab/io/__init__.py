"""Files and buffers: reads and writes straight into the memory of a buffer, and a copier by direct I/O.

    read_into, write_from   one transfer, in a thread that can be abandoned          _transfer
    copy_file               a whole file, several transfers at a time                _copy
    open_direct             a file with O_DIRECT, or without where that is refused    _direct

A thread that is stuck in the kernel cannot be stopped, so a cancelled caller leaves it behind. It keeps an
export of its buffer until the kernel is done with it: `Buffer.free` refuses meanwhile, and a lease parks the slot.
It also has a descriptor of its own: the number of a file that is closed meanwhile may soon be another file's.
"""

from ._copy import copy_file as copy_file
from ._direct import open_direct as open_direct
from ._transfer import read_into as read_into
from ._transfer import write_from as write_from

__all__ = ["copy_file", "open_direct", "read_into", "write_from"]
