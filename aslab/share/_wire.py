"""The messages between a service and its clients. No I/O.

Each is a header (length of the body, version, kind) and a body of at most `LONGEST` bytes, little-endian. The
descriptor of a slab's file travels beside the bytes of a `SLAB` message.

    client to service    CLAIM  RELEASE  JOIN  LEAVE
    service to client    SLAB  GONE  GRANTED  REFUSED  FRAME  END  ERROR
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from ._descriptor import Descriptor

VERSION = 1
LONGEST = 4096
_HEADER = struct.Struct("<HBB")
_NUMBER, _SIZE, _PLACE = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQQQ")
_PLACED, _RELEASED = struct.Struct("<4sIIQQQ"), struct.Struct("<4sIQ")
"""A whole message of a number and a place, and one of a number and a single generation; each with its header."""
_NOWHERE = Descriptor(0, 0, 0, 0)


class Kind(IntEnum):
    """What a message says. ``number`` is a request, a receiver or a slab."""

    CLAIM = 1
    """Request ``number``: may I have the buffer at ``place``?"""
    RELEASE = 2
    """I let go of these ``generations``: frames of receiver ``number``, or 0 for claims that were asked for."""
    JOIN = 3
    """My receiver ``number`` wants the frames of channel ``text``."""
    LEAVE = 4
    """It does not want them any more, and has seen ``size`` of them. It will not release any others."""
    SLAB = 16
    """Slab ``number`` has ``size`` bytes; its file comes beside."""
    GONE = 17
    """Nothing of slab ``number`` will be shared again."""
    GRANTED = 18
    """You have a claim on ``place``: the answer to request ``number``, or 0 if you were not asked."""
    REFUSED = 19
    """The answer to request ``number``: there is no such buffer."""
    FRAME = 20
    """You have a claim on ``place``, a frame for receiver ``number``."""
    END = 21
    """There are no more frames for receiver ``number``."""
    ERROR = 22
    """I close the connection, because of ``text``."""


_FIELDS: dict[Kind, tuple[str, ...]] = {
    Kind.CLAIM: ("number", "place"),
    Kind.RELEASE: ("number", "generations"),
    Kind.JOIN: ("number", "text"),
    Kind.LEAVE: ("number", "size"),
    Kind.SLAB: ("number", "size"),
    Kind.GONE: ("number",),
    Kind.GRANTED: ("number", "place"),
    Kind.REFUSED: ("number",),
    Kind.FRAME: ("number", "place"),
    Kind.END: ("number",),
    Kind.ERROR: ("text",),
}


_KINDS = {kind.value: kind for kind in Kind}
_FRAME = _HEADER.pack(_PLACED.size - _HEADER.size, VERSION, Kind.FRAME)
_RELEASE = _HEADER.pack(_RELEASED.size - _HEADER.size, VERSION, Kind.RELEASE)


class Garbage(Exception):
    """The other side sent what is no message, or what it may not say."""


@dataclass(slots=True)
class Message:
    """One message; which fields count depends on its kind."""

    kind: Kind
    number: int = 0
    place: Descriptor = _NOWHERE
    size: int = 0
    generations: tuple[int, ...] = ()
    text: str = ""


def encode(message: Message) -> bytes:
    """The bytes of a message.

    :raises struct.error: if a number does not fit
    """
    body = b"".join(_pack(message, field) for field in _FIELDS[message.kind])
    return _HEADER.pack(len(body), VERSION, message.kind) + body


def encode_frame(number: int, place: Descriptor) -> bytes:
    """The same for a FRAME, in one step: there is one for each frame, and its code and data are cold by then."""
    return _PLACED.pack(_FRAME, number, *place)


def encode_release(receiver: int, generation: int) -> bytes:
    """The same for a RELEASE of a single buffer."""
    return _RELEASED.pack(_RELEASE, receiver, generation)


def _pack(message: Message, field: str) -> bytes:
    if field == "number":
        return _NUMBER.pack(message.number)
    if field == "size":
        return _SIZE.pack(message.size)
    if field == "place":
        return _PLACE.pack(*message.place)
    if field == "generations":
        return struct.pack(f"<{len(message.generations)}Q", *message.generations)
    return message.text.encode()[: LONGEST - _NUMBER.size]


class Decoder:
    """Makes messages of the bytes of a stream, however they are cut."""

    def __init__(self) -> None:
        self._rest = b""

    def frames(self, data: bytes) -> list[tuple[int, Descriptor]] | None:
        """Read whole FRAMEs, and nothing else, in one step; None if `feed` must look at these bytes."""
        if self._rest or len(data) % _PLACED.size:
            return None
        found = []
        for header, number, *place in _PLACED.iter_unpack(data):
            if header != _FRAME:
                return None
            found.append((number, tuple.__new__(Descriptor, place)))  # a third of what Descriptor(*place) costs
        return found

    def releases(self, data: bytes) -> list[tuple[int, int]] | None:
        """The same for whole RELEASEs of one buffer each: their receivers and generations."""
        if self._rest or len(data) % _RELEASED.size:
            return None
        found = []
        for header, receiver, generation in _RELEASED.iter_unpack(data):
            if header != _RELEASE:
                return None
            found.append((receiver, generation))
        return found

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are complete now.

        :raises Garbage: at the first bytes that are no message; all later ones are not looked at
        """
        data, at = self._rest + data if self._rest else data, 0
        while len(data) - at >= _HEADER.size:
            length, version, code = _HEADER.unpack_from(data, at)
            if version != VERSION:
                raise Garbage(f"version {version} of the protocol; this is version {VERSION}")
            kind = _KINDS.get(code)
            if length > LONGEST or kind is None:
                raise Garbage(f"a message of kind {code} and {length} bytes")
            end = at + _HEADER.size + length
            if len(data) < end:
                break
            yield _decode(kind, data[at + _HEADER.size : end])
            at = end
        self._rest = data[at:]


def _decode(kind: Kind, body: bytes) -> Message:
    number, place, size, generations, text = 0, _NOWHERE, 0, (), ""
    try:
        for field in _FIELDS[kind]:
            if field == "number":
                (number,), body = _NUMBER.unpack_from(body), body[_NUMBER.size :]
            elif field == "size":
                (size,), body = _SIZE.unpack_from(body), body[_SIZE.size :]
            elif field == "place":
                place, body = Descriptor(*_PLACE.unpack_from(body)), body[_PLACE.size :]
            elif field == "generations":
                generations, body = struct.unpack(f"<{len(body) // 8}Q", body), b""
            else:
                text, body = body.decode(), b""
    except (struct.error, UnicodeDecodeError) as exc:
        raise Garbage(f"a {kind.name} that cannot be read: {exc}") from None
    if body:
        raise Garbage(f"a {kind.name} of {len(body)} bytes too many")
    return Message(kind, number, place, size, generations, text)
