"""Faults, to test a service with memory that is slow, stuck or refused.

Each wraps a backend, which may be a real one, and is a backend itself, so they stack in any order:

    slabs = Latency(Failslab(Mmap(), probability=20), Uniform(0.01, 0.05))

The wrapped backend is the first argument, and the attribute ``backend``. Everything random has a seed.

`Switch` is turned on and off while it is in use; `aslab.Allocator.faults` has two, for a running service.
"""

from ._deadlock import Deadlock as Deadlock
from ._delay import Delay as Delay
from ._delay import Exponential as Exponential
from ._delay import Uniform as Uniform
from ._failslab import Failslab as Failslab
from ._latency import Latency as Latency
from ._spec import parse_fault as parse_fault
from ._switch import Fault as Fault
from ._switch import FaultKind as FaultKind
from ._switch import Switch as Switch

__all__ = [
    "Deadlock",
    "Delay",
    "Exponential",
    "Failslab",
    "Fault",
    "FaultKind",
    "Latency",
    "Switch",
    "Uniform",
    "parse_fault",
]
