"""For tests: is a backend's contract kept, are a cache's books consistent, does each failure end well?

Also a GPU's driver without a GPU. `aslab.testing.pytest_plugin` is a plugin for pytest.
"""

from ._conformance import check_backend as check_backend
from ._consistency import check_consistency as check_consistency
from ._driver import FakeDriver as FakeDriver
from ._fail_nth import fail_nth as fail_nth

__all__ = ["FakeDriver", "check_backend", "check_consistency", "fail_nth"]
