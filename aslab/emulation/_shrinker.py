"""Memory pressure on the emulated machine, as a `Source` for services in the lab.

In Linux, kswapd calls shrinkers, which is how SPL's caches learned that memory was short. Here the memory wakes
a task, which makes the call.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from .._errors import ConfigError
from ..backends._libc import PAGE_SIZE
from ._memory import PhysicalMemory


class Shrinker:
    """An `aslab.pressure.Source` that reports when the memory wakes kswapd: fewer than ``low`` pages are free.

    It asks for the bytes missing to ``high`` free pages at the time its task runs. Wake-ups before that count as
    one; if nothing is missing any more, it does not ask.

    Occupies the memory's ``wake_kswapd`` while it runs. Works for allocations on the event loop's thread, as
    those of `Vmalloc` and `Kmalloc` are.

    :raises ConfigError: if ``memory`` is not a `PhysicalMemory`
    """

    def __init__(self, memory: PhysicalMemory) -> None:
        if not isinstance(memory, PhysicalMemory):
            raise ConfigError("memory", memory, "it must be a PhysicalMemory")
        self.memory = memory
        """The memory it watches."""

    async def run(self, on_pressure: Callable[[int | None], object]) -> None:
        """As `aslab.pressure.Source.run`; it only ends when cancelled. Existing pressure counts.

        :raises ConfigError: if the memory's ``wake_kswapd`` is already in use, for instance by a kswapd
        """
        memory = self.memory
        if memory.wake_kswapd is not None:
            raise ConfigError("wake_kswapd", memory.wake_kswapd, "it must be None: one listener per memory")
        woken = anyio.Event()

        def wake() -> None:  # called in the middle of an allocation: nothing may happen here
            woken.set()

        memory.wake_kswapd = wake
        try:
            if memory.under_pressure:
                woken.set()
            while True:
                await woken.wait()
                woken = anyio.Event()  # before asking, so that allocations meanwhile wake it again
                missing = memory.high - memory.free_pages
                if missing > 0:
                    on_pressure(missing * PAGE_SIZE)
        finally:
            if memory.wake_kswapd is wake:
                memory.wake_kswapd = None
