"""Sources of memory pressure, which tell a service to return idle memory: the protocol, and those of Linux.

`Cgroup` is for a service with its own memory limit, such as a container; `Psi` for one that shares a machine;
`Signal` is triggered by hand. Any class with the method of `Source` is a source, too.
`aslab.emulation.Shrinker` is one for an emulated machine. Importing this is safe everywhere; if the kernel does
not support a source, the source ends at once.
"""

from ._cgroup import Cgroup as Cgroup
from ._protocol import Source as Source
from ._psi import Psi as Psi
from ._signal import Signal as Signal

__all__ = ["Cgroup", "Psi", "Signal", "Source"]
