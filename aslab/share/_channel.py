"""Sender: frames for whoever listens, no faster than they let go."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel

from .._checks import whole_number
from .._fastpath import Buffer
from ._descriptor import Descriptor
from ._service import Service


class Sender:
    """Sends buffers of a service to all receivers of a channel; each frame is freed when the last one lets go.

    A receiver that holds ``window`` frames holds up the sender, so a slow consumer slows the producer down instead
    of filling memory. So does a channel without receivers. A receiver whose process dies holds up nobody.
    """

    def __init__(self, service: Service, channel: str, *, window: int = 4) -> None:
        whole_number("window", window, 1)
        self._service = service
        self._channel = service.channel(channel)
        self._window = window
        self._unbroken = 0  # frames sent, and rounds of hearing, since the event loop had its turn

    @property
    def receivers(self) -> int:
        """How many there are now."""
        return len(self._channel.members)

    async def send(self, buf: Buffer[Any], nbytes: int | None = None) -> Descriptor:
        """Take over a buffer and send it, once every receiver has room, and there is one.

        If cancelled, or if it raises, the buffer is still the caller's. Event loop's thread only.

        :param nbytes: send the first so many bytes only
        :raises anyio.ClosedResourceError: if the sender or the service is closed
        :raises ConfigError: as `Service.share`
        """
        while not self._has_room():
            self._unbroken += 1
            if self._unbroken > 2 * self._window:
                self._unbroken = 0
                await anyio.lowlevel.checkpoint()
            elif not self._hear():
                self._unbroken = 0
                await self._service.change()
        self._unbroken += 1
        return self._service.send(self._channel, buf, nbytes)

    def send_nowait(self, buf: Buffer[Any], nbytes: int | None = None) -> Descriptor:
        """As `send`, at once. Event loop's thread only.

        :raises anyio.WouldBlock: if a receiver has no room, or there is none
        """
        if not self._has_room():
            raise anyio.WouldBlock
        return self._service.send(self._channel, buf, nbytes)

    def send_blocking(self, buf: Buffer[Any], nbytes: int | None = None) -> Descriptor:
        """As `send`, for any other thread than the event loop's."""
        descriptor: Descriptor = self._service.portal.call(self.send, buf, nbytes)
        return descriptor

    def close(self) -> None:
        """Tell the receivers that no more frames come. Closing twice does nothing."""
        if not self._channel.ended:
            self._service.end(self._channel)

    def _has_room(self) -> bool:
        if self._channel.ended or self._service.closed:
            raise anyio.ClosedResourceError("the channel is closed")
        members = self._channel.members
        for member in members:
            if len(member.frames) >= self._window:
                return False
        return bool(members)

    def _hear(self) -> bool:
        """Read releases that have come already: two turns of the event loop less."""
        heard = [self._service.hear(member.peer) for member in list(self._channel.members)]
        return any(heard)
