"""``aslab lab``.

_common     the app, and what its commands share
_scenarios  ``list`` and ``run``: scenarios
_story      ``story``: its options, and the story of 2012
_staging    ``story --of staging``
_settings   ``--set``: another computer
_grid       ``--grid``: many computers
_rows       the results of a story: tables, JSON, a page
_progress   the progress bar of a story
"""

from . import _scenarios as _scenarios  # these two register their commands with the app
from . import _story as _story
from ._common import app as app

__all__ = ["app"]
