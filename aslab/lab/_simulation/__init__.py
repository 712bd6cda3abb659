"""An async function in simulated time: the same seed gives the same run, on asyncio and on trio.

_run                 run a function so; the run that a task is part of
_asyncio  _trio      each loop, with a clock that jumps to the next timer
_order  _blocked     asyncio: in an order that is the same in every process
_idle                nothing can run: is that the end?
_outside  _threads   what the clock has to wait for: threads, child processes
_stuck               which task waits for what
_waits               who waits for whom, as the parts of a model tell it; the cycle of a deadlock
_log                 the event log
_parallel            many runs, in several processes
"""
