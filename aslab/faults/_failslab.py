"""Memory that is refused, with the options of Linux' fault injection."""

from __future__ import annotations

import logging
import random

from .._checks import whole_number
from .._flags import GFP
from .._reach import self_contained
from ..backends import Backend, Region

log = logging.getLogger("aslab.faults")


@self_contained("backend")
class Failslab:
    """Wraps a backend: acquires fail with MemoryError, as failslab makes kernel allocations fail.

    It suspends only where the wrapped backend does. Event loop's thread only, but for `acquire_nowait`.

    The options have the names and the order of Linux (lib/fault-inject.c): ``fail_nth`` decides alone if it is
    set; otherwise ``space``, ``interval``, ``probability`` and ``times`` do.

    :param probability: percentage of calls that fail, 0..100
    :param interval: only every n-th call may fail
    :param times: most failures; -1 means no limit
    :param space: bytes that can be acquired before the first failure
    :param fail_nth: only the n-th call from now fails; 0 is off. Assign to it to restart.
    :param verbose: 0 is quiet, 1 logs each failure, 2 adds the stack
    :param seed: the same seed gives the same failures
    """

    def __init__(
        self,
        backend: Backend,
        *,
        probability: int = 0,
        interval: int = 1,
        times: int = -1,
        space: int = 0,
        fail_nth: int = 0,
        verbose: int = 0,
        seed: int = 0,
    ) -> None:
        whole_number("probability", probability, 0, 100)
        whole_number("interval", interval, 1)
        whole_number("times", times, -1)
        whole_number("space", space, 0)
        whole_number("fail_nth", fail_nth, 0)
        whole_number("verbose", verbose, 0, 2)
        self.backend = backend
        self.probability = probability
        self.interval = interval
        self.times: int = times
        self.space: int = space
        self.fail_nth: int = fail_nth
        self.verbose = verbose
        self.failures: int = 0
        """Failures so far."""
        self._draw = random.Random(seed)
        self._calls = 0

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Fail, or ask the wrapped backend.

        :raises MemoryError: if this call fails
        """
        self._fail_perhaps(nbytes)
        return await self.backend.acquire(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Fail, or ask the wrapped backend.

        :raises MemoryError: if this call fails
        """
        self._fail_perhaps(nbytes)
        return self.backend.acquire_nowait(nbytes, align, gfp)

    async def release(self, region: Region) -> None:
        """Release to the wrapped backend."""
        await self.backend.release(region)

    def _fail_perhaps(self, nbytes: int) -> None:
        if not self._should_fail(nbytes):
            return
        self.failures += 1
        message = f"failslab: failure {self.failures} injected, {nbytes} bytes"
        if self.verbose:
            log.warning(message, stack_info=self.verbose > 1)
        raise MemoryError(message)

    def _should_fail(self, nbytes: int) -> bool:
        if self.fail_nth:
            self.fail_nth -= 1
            return self.fail_nth == 0
        if not self.probability or not self.times:
            return False
        if self.space > nbytes:
            self.space -= nbytes
            return False
        self._calls += 1
        if self._calls % self.interval:
            return False
        if self._draw.random() * 100 >= self.probability:
            return False
        if self.times > 0:
            self.times -= 1
        return True
