"""What goes wrong between processes."""

from __future__ import annotations

import anyio

from .._errors import SlabError


class RefusedError(SlabError, LookupError):
    """The service does not share such a buffer: the descriptor is stale, or forged, or from another service."""


class DisconnectedError(SlabError, anyio.BrokenResourceError):
    """The other side is gone, was refused, or broke the protocol. Claims that are held stay readable."""
