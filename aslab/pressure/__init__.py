"""How a service learns that it should give idle memory back: the protocol, and the sources that Linux has.

`Cgroup` is for a service with a memory limit of its own, such as a container; `Psi` for one that shares a
machine; `Signal` is triggered by hand. To write your own, implement the one method of `Source`.
`aslab.emulation.Shrinker` does the same for an emulated machine. Importing this is safe anywhere; where the
kernel lacks the feature, a source returns as soon as it is run.
"""

from ._cgroup import Cgroup as Cgroup
from ._protocol import Source as Source
from ._psi import Psi as Psi
from ._signal import Signal as Signal

__all__ = ["Cgroup", "Psi", "Signal", "Source"]
