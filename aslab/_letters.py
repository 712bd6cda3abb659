"""Debug letters: which are allowed, and which caches the environment chooses them for.

The letters and the syntax of ``ASLAB_DEBUG`` are those of Linux' ``slab_debug`` (Documentation/mm/slub.rst), less
what is about page orders and fault injection, and with V:

    ASLAB_DEBUG=FZ                  for all caches
    ASLAB_DEBUG=FZ,frames,tiles*    for the cache frames, and for those whose names begin with tiles
    ASLAB_DEBUG=,frames             FZPU for one cache
    ASLAB_DEBUG=FZ;-,index          for all but one; - also turns off what the code asks for
"""

from __future__ import annotations

from typing import NamedTuple

from ._errors import ConfigError

LETTERS = "FZPUTV"
"""All of them, in the order in which they are written."""
DEFAULT = "FZPU"
"""What a list of caches without letters means, as in Linux."""
VARIABLE = "ASLAB_DEBUG"
_OFF = "-"
_FORM = f"it must be letters of {LETTERS}, or -, and perhaps names, as in FZ,frames,tiles*, in blocks parted by ;"


def letters(field: str, given: object) -> None:
    """Refuse anything but a string of debug letters."""
    if not isinstance(given, str) or set(given) - set(LETTERS):
        raise ConfigError(field, given, f"it must be letters of {LETTERS}, or an empty string")


class _Block(NamedTuple):
    letters: str
    names: tuple[str, ...]

    def matches(self, name: str) -> bool:
        return any(name.startswith(one[:-1]) if one.endswith("*") else name == one for one in self.names)


class Selection:
    """What a text such as ``FZ;-,index`` chooses.

    As in Linux, the first block that names a cache holds for it; if none does, the last one without names. Blanks
    around letters and names, and empty blocks, mean nothing.

    :raises ConfigError: if it is no such text
    """

    def __init__(self, text: str) -> None:
        blocks = [self._block(part, text) for part in text.split(";") if part.strip()]
        self._named = [block for block in blocks if block.names]
        self._for_all = ([None, *(block for block in blocks if not block.names)])[-1]

    @staticmethod
    def _block(part: str, text: str) -> _Block:
        chosen, *names = (one.strip() for one in part.split(","))
        chosen = chosen.upper() or DEFAULT * bool(names)
        if not all(names) or (chosen != _OFF and set(chosen) - set(LETTERS)):
            raise ConfigError(VARIABLE, text, _FORM)
        return _Block(chosen, tuple(names))

    def of(self, name: str, asked: str) -> str:
        """Return the letters of a cache whose code asks for some, in their order."""
        block = next((block for block in self._named if block.matches(name)), self._for_all)
        if block is not None and block.letters == _OFF:
            return ""
        chosen = asked + (block.letters if block is not None else "")
        return "".join(letter for letter in LETTERS if letter in chosen)


NO_SELECTION = Selection("")
