"""The lab: what does a service do when memory stalls? In simulated time, repeatable to the byte from a seed.

    _simulation    run an async function in simulated time
    pytest_plugin  the fixture ``lab``
    _scenario      scenario files: what they may contain, and how one is run
    scenarios      the same, for programs and tests
    _report        pages and traces of a run
    _story         the story of 2012
    _staging       the story of the staging buffers

`run` and the fixture need nothing but anyio and the loop; scenarios need the extra ``lab``.
"""

from ._simulation._log import Event as Event
from ._simulation._log import EventLog as EventLog
from ._simulation._run import Lab as Lab
from ._simulation._run import Outcome as Outcome
from ._simulation._run import Stuck as Stuck
from ._simulation._run import current as current
from ._simulation._run import housekeeping as housekeeping
from ._simulation._run import run as run
from ._simulation._stuck import StuckTask as StuckTask

__all__ = ["Event", "EventLog", "Lab", "Outcome", "Stuck", "StuckTask", "current", "housekeeping", "run"]
