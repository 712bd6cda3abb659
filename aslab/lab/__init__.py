"""The lab: what does a service do when memory stalls? Simulated time, from a seed, repeatable to the byte.

    _run  _idle  _stuck  _log           run an async function so; who waits on what; the event log
    _asyncio  _trio                     simulated time, and order, on each loop
    pytest_plugin                       the fixture ``lab``
    _scenario  _values  _load           scenario files: what they may say, and what is wrong with one
    _machine  _workload  _play          their memory and backends, their tasks, a run of them
    _metrics  _result                   what is expected of them, and what came
    _recording  _trace                  seeing it: what is kept of a run; a file for Perfetto
    _report  _timeline  _rows  _bounds  the page of a scenario
    _tale  _ring  _told                 the page of a story; who waits on whom; the story of 2012 for it
    _page  _charts  _figures            what all pages have: their frame, charts over time, colours and words
    _story  _machines  _computer        the story of 2012: one run, its machines, and what all of them have
    _chapters  _grid  _experiments      over many seeds; on many computers

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
