"""For tests: is a backend's contract kept, are a cache's books consistent, and a GPU's driver without a GPU."""

from ._conformance import check_backend as check_backend
from ._consistency import check_consistency as check_consistency
from ._driver import FakeDriver as FakeDriver

__all__ = ["FakeDriver", "check_backend", "check_consistency"]
