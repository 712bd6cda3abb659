"""Protocols for connections of asyncio and uvloop that receive straight into buffers of a cache.

BufferedReceiver   whole buffers, for an iterator or a callback   _receiver
"""

from ._receiver import BufferedReceiver as BufferedReceiver

__all__ = ["BufferedReceiver"]
