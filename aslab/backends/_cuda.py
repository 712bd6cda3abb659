"""CUDA's page locking, from whichever library is installed, or loaded already."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any, Protocol

from .._checks import whole_number
from .._reach import self_contained

PORTABLE = 1
"""cudaHostRegisterPortable: page-locked for every device, not for that of the calling thread alone."""
OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation: the driver cannot lock as much now."""
LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
MOST_DEVICES = 1024
Call = Callable[..., object]


class Driver(Protocol):
    """What `Pinned` needs of a driver. Both calls may block, and are made in threads."""

    def register(self, address: int, nbytes: int) -> None:
        """Lock whole pages for fast copies.

        :raises MemoryError: if not so much can be locked now; growth retries later
        """
        ...

    def unregister(self, address: int) -> None:
        """Unlock what was registered at this address. The memory is unmapped next."""
        ...


@self_contained()
class CudaDriver:
    """`Driver` by cuda-bindings, by PyTorch, or by a CUDA runtime library that the linker finds.

    The first call makes a context on the device, as any first call of CUDA does.

    :param device: whose context is used. The pages are locked for all devices
    :raises ImportError: if there is none of the three
    """

    def __init__(self, device: int = 0) -> None:
        whole_number("device", device, 0, MOST_DEVICES)
        self.device = device
        self._set_device, self._register, self._unregister = _from_bindings() or _from_torch() or _from_library()

    def register(self, address: int, nbytes: int) -> None:
        """Call cudaHostRegister.

        :raises MemoryError: if the driver cannot lock so much
        :raises RuntimeError: with CUDA's number, for anything else: no GPU, no driver, locked already
        """
        _check("cudaSetDevice", self._set_device(self.device))
        _check("cudaHostRegister", self._register(address, nbytes, PORTABLE))

    def unregister(self, address: int) -> None:
        """Call cudaHostUnregister.

        :raises RuntimeError: with CUDA's number
        """
        _check("cudaSetDevice", self._set_device(self.device))
        _check("cudaHostUnregister", self._unregister(address))


def _from_bindings() -> tuple[Call, Call, Call] | None:
    runtime = _imported("cuda.bindings.runtime")
    return runtime and (runtime.cudaSetDevice, runtime.cudaHostRegister, runtime.cudaHostUnregister)


def _from_torch() -> tuple[Call, Call, Call] | None:
    torch = _imported("torch")
    if torch is None or torch.version.cuda is None:
        return None

    def register(*args: int) -> object:  # cudart() initialises CUDA, so not before the first call
        return torch.cuda.cudart().cudaHostRegister(*args)

    def unregister(*args: int) -> object:
        return torch.cuda.cudart().cudaHostUnregister(*args)

    return torch.cuda.set_device, register, unregister


def _from_library() -> tuple[Call, Call, Call]:
    for name in LIBRARIES:
        try:
            runtime = ctypes.CDLL(name)
        except OSError:
            continue
        runtime.cudaHostRegister.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
        runtime.cudaHostUnregister.argtypes = (ctypes.c_void_p,)
        return runtime.cudaSetDevice, runtime.cudaHostRegister, runtime.cudaHostUnregister
    raise ImportError(
        "Pinned needs the extra 'cuda': run pip install '.[cuda]' in a clone of aslab, or PyTorch built with CUDA"
    )


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _check(call: str, result: object) -> None:
    """Raise for any result but success. The libraries return a number, an enum, an enum in a tuple, or None."""
    if isinstance(result, tuple):
        result = result[0]
    code: Any = getattr(result, "value", result) or 0
    if code == OUT_OF_MEMORY:
        raise MemoryError(f"{call}: no more memory can be page-locked now")
    if code:
        raise RuntimeError(f"{call}: CUDA error {code} ({getattr(result, 'name', 'see cudaError_t')})")
