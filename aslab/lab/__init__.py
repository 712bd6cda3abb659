"""The lab: what does a service do when memory stalls? Simulated time, from a seed, repeatable to the byte.

`run` runs any async function so. The pytest fixture ``lab`` is in `aslab.lab.pytest_plugin`.
"""

from ._log import Event as Event
from ._log import EventLog as EventLog
from ._run import Lab as Lab
from ._run import Outcome as Outcome
from ._run import Stuck as Stuck
from ._run import current as current
from ._run import housekeeping as housekeeping
from ._run import run as run
from ._stuck import StuckTask as StuckTask

__all__ = ["Event", "EventLog", "Lab", "Outcome", "Stuck", "StuckTask", "current", "housekeeping", "run"]
