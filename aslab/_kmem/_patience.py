"""How long a caller waits for growth before it takes an emergency object: a number, or learned from the grows.

What a grow usually takes is the median of the last few: one that was stuck teaches nothing, a backend that has
become slow is believed after a handful. Four times that is late. A caller whose progress frees memory waits half
as long. Nothing is late before a timer tick of 2012 (HZ=100), and everything after a second.

Before the first grow has ended, SPL's HZ/10 stands in, or what slow memory takes for so many bytes.
"""

from __future__ import annotations

from collections import deque

from .._flags import ORDINARY

LEAST, MOST = 0.01, 1.0
"""Seconds."""
AT_FIRST = 0.1
"""Seconds: SPL's HZ/10."""
SLOW = 256 * 2**20
"""Bytes a second that any memory is believed to come at."""
TIMES = 4
"""What usually takes so much less is late."""
GROWS = 8
"""As many are remembered."""


class Patience:
    """The patience of the callers of one pool, in seconds.

    :param fixed: the same for all; None where it is learned
    """

    def __init__(self, fixed: float | None, slab_size: int) -> None:
        self._fixed = fixed
        self._at_first = slab_size / SLOW
        self._took: deque[float] = deque(maxlen=GROWS)

    def note(self, seconds: float) -> None:
        """A grow has brought its slab; it took the backend so long."""
        self._took.append(seconds)

    def of(self, level: int) -> float:
        """What such a caller has now."""
        if self._fixed is not None:
            return self._fixed
        took = sorted(self._took)
        if not took or (len(took) == 1 and took[0] > MOST):  # a first one that was stuck teaches nothing, either
            late = max(self._at_first, AT_FIRST if level == ORDINARY else 0)
        else:
            late = TIMES * took[(len(took) - 1) // 2] / (1 if level == ORDINARY else 2)
        return min(max(late, LEAST), MOST)
