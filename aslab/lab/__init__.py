"""The lab: what does a service do when memory stalls? Simulated time, from a seed, repeatable to the byte.

    _run  _idle  _stuck  _log           run an async function so; who waits on what; the event log
    _asyncio  _trio                     simulated time, and order, on each loop
    pytest_plugin                       the fixture ``lab``
    _scenario  _values  _load           scenario files: what they may say, and what is wrong with one
    _machine  _workload  _play          their memory and backends, their tasks, a run of them
    _metrics  _result                   what is expected of them, and what came
    _recording  _trace  _report         seeing it
    _story  _machines  _computer        the story of 2012: one run, its machines, and what all of them have
    _chapters  _grid  _experiments      over many seeds; on many computers

`run` and the fixture need nothing but anyio and the loop; scenarios need the extra ``lab``.
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
