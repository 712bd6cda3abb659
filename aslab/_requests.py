"""What is asked of a service at its socket of statistics, and the answers.

A request is a line of text; an empty one asks for a snapshot. ``fault growth stuck 3s`` and its like turn faults
on and off, if the service lets them be. Each answer is one JSON object: a snapshot, what was done and the faults
that are on, or an ``error`` in one line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict

from ._checks import whole_number
from ._errors import ConfigError, SlabError
from ._faults import Faults
from ._snapshots import VERSION
from .faults import Switch
from .faults._spec import parse_seconds

KINDS = "stuck [DURATION], slow DELAY [DURATION], fail TIMES [DURATION] or heal"


def answer(request: str, snapshot: Callable[[], bytes], faults: Faults | None) -> bytes:
    """Do what is asked, and return the answer. Any thread.

    :param snapshot: makes a snapshot
    :param faults: None where the service lets none be turned on
    """
    word, *words = request.split() or [""]
    if not word:
        return snapshot()
    found: dict[str, object] = {"version": VERSION, "pid": os.getpid()}
    try:
        if word != "fault":
            raise ConfigError("request", word, "it must be fault, or nothing for a snapshot")
        if faults is None:
            raise no_faults()
        found["done"] = perform(words, faults)
        found["faults"] = [asdict(one) | {"text": str(one)} for one in faults.status()]
    except SlabError as exc:
        found["error"] = str(exc)
    return json.dumps(found).encode() + b"\n"


def no_faults() -> ConfigError:
    """The error where faults were not let in."""
    message = "faults are not allowed here: to allow them, open the allocator with faults=True"
    return ConfigError("faults", False, "it must be True", message)


def perform(words: list[str], faults: Faults) -> str:
    """Do what the words after ``fault`` ask for. Returns what was done, in words. Any thread.

    :raises ConfigError: if they are wrong; nothing was changed then
    """
    where, *rest = words or [""]
    if where in ("heal", "status") and not rest:
        if where == "status":
            return ""
        healed = [str(one) for one in faults.status()]
        faults.heal()
        return _healed(healed)
    target = faults.by_name.get(where)
    if target is None:
        allowed = f"it must be {', '.join(faults.by_name)}, heal or status"
        raise ConfigError("fault", " ".join(words), allowed)
    if rest == ["heal"]:
        healed = [str(one) for one in faults.status() if one.where == where]
        target.heal()
        return _healed(healed)
    _turn_on(where, target, rest)
    return f"turned on: {' '.join(words)}"


def _turn_on(where: str, target: Switch, words: list[str]) -> None:
    """Turn one fault on."""
    kind, *rest = words or [""]
    needs = {"stuck": 0, "slow": 1, "fail": 1}.get(kind)
    if needs is None or not needs <= len(rest) <= needs + 1:
        raise ConfigError(where, " ".join(words), f"it must be {KINDS}")
    seconds = _seconds("duration", rest[needs]) if len(rest) > needs else None
    if kind == "stuck":
        target.stick(seconds)
    elif kind == "slow":
        target.slow(_seconds("delay", rest[0]), seconds)
    else:
        times = int(rest[0]) if rest[0].isascii() and rest[0].isdigit() and len(rest[0]) < 10 else rest[0]
        whole_number("times", times, 1)
        target.fail(int(times), seconds)


def _seconds(field: str, text: str) -> float:
    try:
        found = parse_seconds(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e9:
        raise ConfigError(field, text, "it must be a time such as 3s, 200ms or 1m")
    return found


def _healed(texts: list[str]) -> str:
    return f"healed: {'; '.join(texts)}" if texts else "there was nothing to heal"
