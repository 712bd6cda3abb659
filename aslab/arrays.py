"""numpy arrays over pooled memory. Needs the extra ``arrays``.

    cache(kmem, ...)    one array per slot, built when the slab is made: nothing per allocation
    array(buf, ...)     an array per call: counted, so that a free while it lives is refused

Which one? The array of a slot costs nothing, but belongs to the slot and serves one owner after another: nobody
notices when it is kept past `Buffer.free`, and it then shows the next owner's content. An array of `array` makes
the free fail instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any, TypeAlias

from ._errors import ConfigError

try:
    import numpy as np
except ModuleNotFoundError as _missing:
    if _missing.name != "numpy":
        raise
    raise ModuleNotFoundError(
        "aslab.arrays needs the extra 'arrays': run pip install '.[arrays]' in a clone of aslab", name="numpy"
    ) from None

if TYPE_CHECKING:
    from typing import Unpack

    import numpy.typing as npt

    from ._allocator import Allocator
    from ._cache import Cache
    from ._fastpath import Buffer
    from ._options import CacheKeywords

    Array: TypeAlias = npt.NDArray[Any]

__all__ = ["array", "cache"]


def cache(
    kmem: Allocator,
    name: str,
    shape: int | Sequence[int],
    dtype: npt.DTypeLike,
    **options: Unpack[CacheKeywords],
) -> Cache[Array]:
    """Make a cache whose objects are arrays: ``buf.obj`` is one of that shape and dtype.

    The array is C-contiguous, aligned and writable, lies in the buffer's memory, and is built once per slot. It
    holds what the last owner left in it. Use it only while the buffer is allocated: it belongs to the slot and
    serves one owner after another. ``buf.free()`` succeeds while somebody still has the array, a slice of it, or a
    tensor made from it, and whoever writes there then writes into the next owner's memory. Where code that you do
    not control may keep it, give that `array`, or the buffer itself by DLPack.

    Does not suspend; event loop's thread only.

    :param shape: a length, or the length of each dimension, all of them at least 1
    :param dtype: anything numpy makes a dtype of, but without Python objects in it
    :param options: as `Allocator.create_cache`; what excludes a ``ctor`` is refused
    :raises ConfigError: for a shape or dtype that memory cannot hold, and as `Allocator.create_cache`
    """
    kind = _dtype(dtype)
    lengths = _shape(shape)
    if not lengths or 0 in lengths:
        raise ConfigError("shape", shape, "it must have at least one dimension, and none of length 0")
    align = options.get("align")
    if isinstance(align, int) and align < kind.alignment:
        raise ConfigError("align", align, f"it must be at least {kind.alignment}, the alignment of {kind}")

    def build(memory: memoryview) -> Array:
        return np.frombuffer(memory, kind).reshape(lengths)

    return kmem.create_cache(name, math.prod(lengths) * kind.itemsize, ctor=build, **options)


def array(buf: Buffer[Any], dtype: npt.DTypeLike = np.uint8, shape: int | Sequence[int] | None = None) -> Array:
    """Make an array over the memory of any buffer, from its start. Not copied; any thread.

    It exports the memory as a view does: while it lives, or anything that shares its memory, ``buf.free()`` raises
    BufferError and the buffer stays allocated, and a ``movable`` one stays where it is.

    :param dtype: anything numpy makes a dtype of, but without Python objects in it
    :param shape: a length, or the length of each dimension; may leave the end of the memory out. None is one
        dimension over all of it.
    :raises ConfigError: if they do not fit the buffer
    :raises BufferFreedError: after `Buffer.free`
    """
    kind = _dtype(dtype)
    size = len(buf)
    if shape is None:
        if size % kind.itemsize:
            raise ConfigError("dtype", dtype, f"its {kind.itemsize} bytes must divide the buffer's {size}")
        shape = size // kind.itemsize
    lengths = _shape(shape)
    count = math.prod(lengths)
    if count * kind.itemsize > size:
        takes = count * kind.itemsize
        raise ConfigError("shape", shape, f"it must fit the buffer's {size} bytes, and takes {takes} of {kind}")
    if buf.address % kind.alignment:
        raise ConfigError(
            "dtype", dtype, f"the buffer must be aligned to {kind.alignment} bytes, by its cache's align"
        )
    with buf.pin() as view:  # ends with the block for us; the array keeps it for itself
        return np.frombuffer(view, kind, count).reshape(lengths)


def _dtype(given: npt.DTypeLike) -> np.dtype[Any]:
    """The dtype, if plain memory can hold it."""
    if given is None:  # float64 to numpy, hardly to the caller
        raise ConfigError("dtype", given, "it must be a dtype")
    try:
        kind = np.dtype(given)
    except (TypeError, ValueError) as exc:
        raise ConfigError("dtype", given, f"it must be a dtype: {exc}") from None
    if kind.hasobject:
        raise ConfigError(
            "dtype", given, "it must be without Python objects: a slot is bytes, which hold no references"
        )
    if kind.subdtype is not None:
        raise ConfigError("dtype", given, "it must be without a shape of its own: put that into shape")
    if not kind.itemsize:
        raise ConfigError("dtype", given, "its items must have a size")
    return kind


def _shape(given: int | Sequence[int]) -> tuple[int, ...]:
    """The lengths of all dimensions."""
    try:
        lengths = tuple(index(one) for one in ((given,) if isinstance(given, int) else given))
    except TypeError:
        lengths = (-1,)
    if isinstance(given, (bool, str, bytes)) or any(one < 0 for one in lengths):
        raise ConfigError("shape", given, "it must be a whole number, or a sequence of them, none negative")
    return lengths
