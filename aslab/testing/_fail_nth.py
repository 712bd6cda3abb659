"""Every backend call of a test fails in turn, as Linux' ``fail-nth`` does it for system calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from .._checks import whole_number
from ..backends import Backend
from ..faults import Failslab

log = logging.getLogger("aslab.faults")


def fail_nth(make: Callable[[], Backend], *, most: int = 1000) -> Iterator[Failslab]:
    """Give a backend whose first acquire fails, then one whose second does, and so on, until none fails any more.

    Call it where the allocator's event loop runs.

        for failing in fail_nth(Mmap):
            async with open_allocator(slabs=failing) as kmem:
                ...  # what is tested: it must end well, whichever acquire fails

    The last round is one without a failure. Each is logged, so that pytest shows which round it was that failed.

    :param make: makes the backend of each round
    :param most: rounds after which something must be wrong: the test asks the backend without end
    :raises AssertionError: after so many rounds
    """
    whole_number("most", most, 1)
    for nth in range(1, most + 1):
        log.warning("fail_nth: round %d, in which acquire %d fails", nth, nth)
        failing = Failslab(make(), fail_nth=nth)
        yield failing
        if not failing.failures:
            return
    raise AssertionError(f"an acquire failed in each of {most} rounds: the test never stops asking")
