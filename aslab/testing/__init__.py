"""For tests: does a backend keep its contract, and are the books of a cache consistent?"""

from ._conformance import check_backend as check_backend
from ._consistency import check_consistency as check_consistency

__all__ = ["check_backend", "check_consistency"]
