"""The protocol of a source of memory pressure: one method, and the callback it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Source(Protocol):
    """Reports that memory is short. Any object with this method is one."""

    async def run(self, on_pressure: Callable[[int | None], object]) -> None:
        """Call ``on_pressure(nbytes)`` each time memory is short, until cancelled.

        ``nbytes`` is the number of bytes wanted back; None is everything that can be spared. The callback is
        quick, does not suspend, and must be called on the event loop's thread.

        Returns at once where the machine lacks the feature, with a debug message from the logger
        ``aslab.pressure``. Also returns when what it watches is gone. However it ends, it leaves nothing open.
        """
        ...
