"""Pressure on the emulated machine, told as the real one's is: a `Source` for services in the lab.

Linux has kswapd ask its shrinkers, which is how SPL's caches learned that memory was short. Here the
memory wakes a task, and that task asks.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from .._errors import ConfigError
from ..backends._libc import PAGE_SIZE
from ._memory import PhysicalMemory


class Shrinker:
    """An `aslab.pressure.Source`: the memory's kswapd was woken, since fewer than ``low`` pages were free.

    The bytes wanted are those that are missing to ``high`` free pages by the time its task runs. Wake-ups
    until then are one; where nothing is missing any more, nobody is asked.

    Takes the memory's ``wake_kswapd`` for as long as it runs. For allocations on the event loop's thread,
    as those of `Vmalloc` and `Kmalloc` are.

    :raises ConfigError: if ``memory`` is no `PhysicalMemory`
    """

    def __init__(self, memory: PhysicalMemory) -> None:
        if not isinstance(memory, PhysicalMemory):
            raise ConfigError("memory", memory, "it must be a PhysicalMemory")
        self.memory = memory
        """The memory it listens to."""

    async def run(self, on_pressure: Callable[[int | None], object]) -> None:
        """As `aslab.pressure.Source.run`; it ends only by cancellation. Pressure that is there already counts.

        :raises ConfigError: if somebody else has the memory's ``wake_kswapd``, such as a kswapd
        """
        memory = self.memory
        if memory.wake_kswapd is not None:
            raise ConfigError("wake_kswapd", memory.wake_kswapd, "it must be None: one listener per memory")
        woken = anyio.Event()

        def wake() -> None:  # the memory is in the middle of an allocation: nothing may happen here
            woken.set()

        memory.wake_kswapd = wake
        try:
            if memory.under_pressure:
                woken.set()
            while True:
                await woken.wait()
                woken = anyio.Event()  # before asking: what is allocated meanwhile wakes it again
                missing = memory.high - memory.free_pages
                if missing > 0:
                    on_pressure(missing * PAGE_SIZE)
        finally:
            if memory.wake_kswapd is wake:
                memory.wake_kswapd = None
