"""Who holds which buffer. No I/O; event loop's thread only.

Always true between calls: a buffer is in the ledger while its count is above 0, and its count is the sum of what
all holders have of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._errors import BufferFreedError, ConfigError, CorruptionError
from .._fastpath import Buffer
from ._descriptor import Descriptor


@dataclass(slots=True)
class _Entry:
    descriptor: Descriptor
    buf: Buffer[Any]
    count: int = 0


class Ledger:
    """The buffers that are shared, and the claims on them by holder: a client, or the producer's own handle."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._buffers: set[int] = set()  # by id: a buffer does not hash fast
        self._held: dict[object, dict[int, int]] = {}
        self._generation = 0
        self._unfreed: list[Buffer[Any]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def enter(self, buf: Buffer[Any], slab: int, offset: int, size: int) -> Descriptor:
        """Take over a buffer; `give` somebody a claim on it next.

        :raises ConfigError: if it has been taken over already
        """
        if id(buf) in self._buffers:
            raise ConfigError("buf", buf, "it must not be shared already")
        self._generation += 1
        descriptor = tuple.__new__(Descriptor, (slab, offset, size, self._generation))  # as in _wire.py
        self._entries[self._generation] = _Entry(descriptor, buf)
        self._buffers.add(id(buf))
        return descriptor

    def give(self, holder: object, descriptor: Descriptor) -> bool:
        """One claim more for a holder; False if nothing is shared under that very descriptor."""
        entry = self._entries.get(descriptor.generation)
        if entry is None or (entry.descriptor is not descriptor and entry.descriptor != descriptor):
            return False
        try:
            _ = entry.buf.address
        except BufferFreedError:  # by the producer, which had given it away: its place may have a new owner
            return False
        entry.count += 1
        held = self._held.get(holder)
        if held is None:
            held = self._held[holder] = {}
        held[descriptor.generation] = held.get(descriptor.generation, 0) + 1
        return True

    def release(self, holder: object, generation: int) -> bool:
        """One claim less; False if the holder has none."""
        held = self._held.get(holder)
        count = 0 if held is None else held.get(generation, 0)
        if held is None or not count:
            return False
        if count > 1:
            held[generation] = count - 1
        else:
            del held[generation]
            if not held:
                del self._held[holder]
        entry = self._entries[generation]
        entry.count -= 1
        if not entry.count:
            self._drop(entry)
        return True

    def drop_unheld(self, generation: int) -> None:
        """Free a buffer that nobody has a claim on."""
        entry = self._entries[generation]
        if not entry.count:
            self._drop(entry)

    def _drop(self, entry: _Entry) -> None:
        del self._entries[entry.descriptor.generation]
        self._buffers.discard(id(entry.buf))
        self._free(entry.buf)

    def lose(self, holder: object) -> None:
        """Release whatever a holder has: it is gone."""
        for generation, count in list(self._held.get(holder, {}).items()):
            for _ in range(count):
                self.release(holder, generation)

    def held(self, holder: object) -> int:
        """How many claims a holder has."""
        return sum(self._held.get(holder, {}).values())

    def free(self) -> None:
        """Free what nobody holds any more, as far as the producer's own exports allow."""
        buffers, self._unfreed = self._unfreed, []
        for buf in buffers:
            self._free(buf)

    def _free(self, buf: Buffer[Any]) -> None:
        try:
            buf.free()
        except (BufferFreedError, CorruptionError):  # what a debug letter finds is logged, and it is free
            pass
        except BufferError:  # an array of the producer's own: tried again later
            self._unfreed.append(buf)

    def abandon(self) -> list[Buffer[Any]]:
        """All that is shared still, for somebody to keep: it must never be freed."""
        buffers = [entry.buf for entry in self._entries.values()]
        self._entries.clear()
        self._buffers.clear()
        self._held.clear()
        return buffers
