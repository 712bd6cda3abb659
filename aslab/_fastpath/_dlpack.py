"""DLPack: the memory of a buffer as a tensor of bytes, for every library that speaks the protocol.

A consumer may call the deleter of a tensor on any thread, without the GIL, while an exception is on its way, and
at the very end of the process. A ctypes callback survives neither of the last two: called while an exception is
pending, it replaces that by a SystemError, and ``f(torch.from_dlpack(buf))`` calls it so whenever ``f`` raises. So
the capsule and its deleter are numpy's, in C, made from an array over a pin.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

CPU = (1, 0)
"""kDLCPU, and the first of them."""


def capsule(pin: AbstractContextManager[memoryview], options: dict[str, Any]) -> Any:
    """A capsule over the memory; the tensor in it, or made from it, lasts as an array made inside of the pin does.

    :raises ModuleNotFoundError: without numpy
    :raises BufferError: for another device than the CPU (by numpy before 2.4 a ValueError)
    """
    try:
        import numpy as np
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "DLPack needs the extra 'arrays': run pip install '.[arrays]' in a clone of aslab", name="numpy"
        ) from None
    with pin as view:
        array = np.frombuffer(view, np.uint8)
    try:
        return array.__dlpack__(**options)
    finally:
        del array  # or the frames of an error would keep the memory in use
