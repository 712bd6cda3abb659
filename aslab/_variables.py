"""The variables of functions that are running, read without changing anything.

Up to Python 3.12, ``frame.f_locals`` puts all variables into the dict that the function got from ``locals()``, if
it ever called that, and so changes it, and keeps them alive. There they are read from where CPython keeps them:
behind nine words of the interpreter's own frame, in the order of the code object (pycore_frame.h of 3.11 and 3.12,
whose layout does not change any more). From 3.13 on ``f_locals`` is a view of the variables (PEP 667).

Any thread, but a frame must be one that the calling thread will return to.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from inspect import CO_OPTIMIZED
from types import CellType, FrameType
from typing import Any, cast

_WORD = ctypes.sizeof(ctypes.c_void_p)
_FRAME = object.__basicsize__ + _WORD
"""In a frame object, behind ``f_back``: where the interpreter's own frame is."""
_VARIABLES = 9 * _WORD
"""In the interpreter's own frame of 3.11 and 3.12: where the variables begin."""


def variables(frame: FrameType) -> Iterator[tuple[str, object]]:
    """Give each variable that has a value, with its name; those of a module or a class as well."""
    if sys.version_info < (3, 13) and frame.f_code.co_flags & CO_OPTIMIZED:
        yield from _read(frame)
    else:
        names = frame.f_locals
        for name in list(names):  # not items: those are found as objects that refer to the values
            yield name, names[name]


def _read(frame: FrameType) -> Iterator[tuple[str, object]]:
    start = ctypes.c_void_p.from_address(id(frame) + _FRAME).value
    assert start is not None, "it is running"
    name_of = cast("Any", frame.f_code)._varname_from_oparg
    number = 0
    while True:
        try:
            name = name_of(number)
        except IndexError:
            return
        for value in _value_at(start + _VARIABLES + number * _WORD):
            yield name, value
        number += 1


def _value_at(place: int) -> list[object]:
    """Return the value of a variable, alone in a list; [] if it has none."""
    if not ctypes.c_void_p.from_address(place).value:
        return []
    value: object = ctypes.py_object.from_address(place).value
    if not isinstance(value, CellType):
        return [value]
    try:  # an inner function uses it as well
        return [value.cell_contents]
    except ValueError:
        return []
