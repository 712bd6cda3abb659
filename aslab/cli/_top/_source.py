"""Asking a service for its statistics or for faults, at the socket of `Allocator.serve_stats`."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from ... import _unix as unix
from .._errors import BadInput, printable, why

PATIENCE = 5.0
"""Seconds that a service has to answer."""
MOST = 64 * 2**20
"""Bytes of an answer: more is none."""
VARIABLE = "ASLAB_SOCKET"
"""The environment variable that may hold the address."""
DOUBT = "; it may be done all the same: see 'aslab fault status'"
"""What is true of a command whose answer is lost. The service drops what it has not begun when its client goes."""
ALLOWED = "it must be the socket of a service's kmem.serve_stats(path)"


def ask(address: Path, request: str = "") -> dict[str, Any]:
    """Return the answer to a request: a snapshot, if it is empty. Blocks for `PATIENCE` seconds at most.

    :raises BadInput: if nobody answers there, or what answers is no such service of this user; it says so if
        what was asked may be done all the same
    """
    name = printable(str(address))
    until, answer, doubt = time.monotonic() + PATIENCE, b"", ""
    try:
        with unix.dial(address, PATIENCE) as sock:
            if not unix.ours(sock):
                raise BadInput(f"{name}: the service belongs to another user")
            sock.settimeout(max(0.001, until - time.monotonic()))
            doubt = DOUBT if request else ""
            sock.sendall(f"{request}\n".encode())
            with contextlib.suppress(ConnectionResetError):  # the end, if the service did not read all
                while (piece := sock.recv(2**16)) and len(answer) < MOST:
                    answer += piece
                    sock.settimeout(max(0.001, until - time.monotonic()))
    except TimeoutError:
        raise BadInput(f"{name}: no answer came within {PATIENCE:g} s{doubt}") from None
    except OSError as exc:
        raise BadInput(f"{name}: {why(exc)}; {doubt[2:] or ALLOWED}") from None
    if doubt and not answer:
        raise BadInput(f"{name}: the service ended without an answer{doubt}")
    try:
        found = json.loads(answer)
        if found["version"] != 1:
            raise BadInput(f"{name}: the service is of another version of aslab")
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{name}: what answers there is no statistics; {ALLOWED}") from None
    return dict(found)
