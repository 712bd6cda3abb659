"""An async function in simulated time: the same seed gives the same run, on asyncio and on trio.

_run                 run a function this way; the run that a task belongs to
_asyncio  _trio      each loop, with a clock that jumps to the next timer
_queue               asyncio only: callbacks and timers, in asyncio's order, in half the time
_order  _blocked     asyncio only: the same order in every process
_idle                nothing can run: is this the end?
_interrupts          Ctrl-C: on asyncio it is not lost, on trio it waits for a checkpoint
_outside  _threads   what the clock has to wait for: threads, child processes
_stuck               what each task waits on
_waits               who waits on whom, as a model reports it; the cycle of a deadlock
_log                 the event log
_parallel            many runs, in several processes
"""
