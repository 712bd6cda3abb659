"""The protocol of a source of memory pressure: one method, and the call it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Source(Protocol):
    """Reports when memory is short. Any object with this method is one."""

    async def run(self, on_pressure: Callable[[int | None], object]) -> None:
        """Call ``on_pressure(nbytes)`` each time memory is short, until cancelled.

        ``nbytes`` is the number of bytes to return; None means everything that can be spared. The call is quick,
        does not suspend, and must be made on the event loop's thread.

        Returns at once if the machine does not support the source, with a debug line of the logger
        ``aslab.pressure``. Also returns when what it watches is gone. However it ends, it leaves nothing open.
        """
        ...
