"""The acts, one after another, and what is printed of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict

from .._loops import Loop
from ._acts import QUICK, USUAL, acts, play
from ._files import Where, name_unreadable
from ._output import write_json
from ._pair import Pair
from ._service import Settings
from ._stage import Stage


def play_acts(
    numbers: Collection[int], loop: Loop, where: Where, settings: Settings, *, quick: bool, as_json: bool
) -> int:
    """Play these acts. Returns the exit code.

    :raises ConfigError: if a buffer does not fit the limit
    """
    chosen = [act for act in acts(where, settings, QUICK if quick else USUAL) if act.number in numbers]
    stage = Stage(show=not as_json)
    stage.open()
    played = []
    for act in chosen:
        pair = Pair()
        with stage.bars(act, pair):
            told = play(act, loop, pair)
        name_unreadable(told.missed())
        stage.tell(act, told)
        played.append((act, told))
    wrong = [sentence for _, told in played for sentence in told.wrong()]
    if as_json:
        found = [{"act": act.number, "name": act.name, **asdict(told)} for act, told in played]
        write_json({"acts": found, "wrong": wrong})
    stage.end(wrong, [told.well() for _, told in played if told.well()])
    return 1 if wrong else 0
