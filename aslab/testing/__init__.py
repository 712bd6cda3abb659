"""Checks for tests: that a backend keeps its contract, and that a cache's books are consistent."""

from ._conformance import check_backend as check_backend
from ._consistency import check_consistency as check_consistency

__all__ = ["check_backend", "check_consistency"]
