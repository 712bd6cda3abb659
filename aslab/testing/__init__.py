"""Checks for tests: of your own backends, and of a cache's bookkeeping."""

from ._conformance import check_backend as check_backend
from ._consistency import check_consistency as check_consistency

__all__ = ["check_backend", "check_consistency"]
