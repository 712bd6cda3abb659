"""Where a service learns that it should give idle memory back: the protocol, and what Linux has to say.

`Cgroup` for a service with a memory limit of its own, such as a container; `Psi` for one that shares a
machine; `Signal` is pressed by hand. Your own is any class with the method of `Source`.
`aslab.emulation.Shrinker` is the same for an emulated machine. Importing this is safe anywhere; where the
kernel has no such thing, a source ends as soon as it is run.
"""

from ._cgroup import Cgroup as Cgroup
from ._protocol import Source as Source
from ._psi import Psi as Psi
from ._signal import Signal as Signal

__all__ = ["Cgroup", "Psi", "Signal", "Source"]
