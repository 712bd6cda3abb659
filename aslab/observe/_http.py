"""What is asked by a scrape, in HTTP, and the answer to it. No sockets here.

Always true: whatever the bytes of a request, it gets one answer, and no exception comes of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

log = logging.getLogger("aslab")

PLAIN = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """Head and body in one, so that one call sends them."""

    data: bytes
    keep: bool
    """Whether the connection is kept."""


class _Request(NamedTuple):
    method: str
    accept: str
    keep: bool


def answer_to(head: bytes, registry: Collector) -> Answer:
    """The answer to a request, whatever its path is.

    :param head: the request without the empty line at its end. A body is not read: the connection is closed then.
    """
    try:
        request = _parse(head)
    except ValueError as exc:
        return refusal("400 Bad Request", str(exc))
    if request.method not in ("GET", "HEAD"):
        return refusal("405 Method Not Allowed", "only GET and HEAD are answered", "Allow: GET, HEAD\r\n")
    encode, kind = _encoder(request.accept)
    try:
        body = encode(registry)
    except Exception:  # of a collector, whose bug it is
        log.exception("the metrics could not be collected")
        return _answer("500 Internal Server Error", "text/plain", b"", keep=request.keep)
    return _answer("200 OK", kind, body, keep=request.keep, only_head=request.method == "HEAD")


def refusal(status: str, why: str, fields: str = "") -> Answer:
    """An answer that ends the connection."""
    return _answer(status, PLAIN, f"{why}\n".encode(), keep=False, fields=fields)


def _answer(
    status: str, kind: str, body: bytes, *, keep: bool, only_head: bool = False, fields: str = ""
) -> Answer:
    fields += "" if keep else "Connection: close\r\n"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{fields}\r\n"
    return Answer(head.encode("latin-1") + (b"" if only_head else body), keep)


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """OpenMetrics where it is asked for, else plain text: also if what is asked for makes no sense."""
    try:
        return choose_encoder(accept)
    except Exception:  # a version that is no number is a TypeError in there
        return choose_encoder("")


def _parse(head: bytes) -> _Request:
    """Read a request.

    :raises ValueError: if it is none of HTTP/1
    """
    # Bytes are split at the ends of lines, where a str would be at more.
    line, *fields = [line.decode("latin-1") for line in head.splitlines()] or [""]
    words = line.split()
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise ValueError("this is no request of HTTP/1")
    headers = dict[str, str]()
    for field in fields:
        name, colon, value = field.partition(":")
        if not colon:
            raise ValueError("a header has no colon")
        headers[name.lower()] = value.strip()
    body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    close = "close" in headers.get("connection", "").lower()
    keep = words[2] != "HTTP/1.0" and not close and not body
    return _Request(words[0], headers.get("accept", ""), keep)
