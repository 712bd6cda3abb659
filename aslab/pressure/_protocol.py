"""What a source of memory pressure is: one method, and the call that it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Source(Protocol):
    """Tells when memory is short. Any object with this method is one."""

    async def run(self, on_pressure: Callable[[int | None], object]) -> None:
        """Call ``on_pressure(nbytes)`` each time memory is short, until cancelled.

        ``nbytes`` is how many bytes are wanted back; None is all that can be spared. The call is quick, does
        not suspend, and belongs on the event loop's thread.

        Returns at once, quietly, where the machine has no such thing; a debug line of the logger
        ``aslab.pressure`` says so. Returns too when what it watches is gone. Once it has ended, however it
        did, it holds nothing open.
        """
        ...
