"""The compiled types, where there are any, in place of those in Python.

A class here that is marked `compiled` is the reference, and what type checkers see. If the module ``_core`` can be
imported, and ``ASLAB_PURE`` is not set to 1, the class of the same name there takes its place. That one is in C
only where it has to be fast: a shortcut does the common case, and else leaves the call to the Python method behind
it. All other methods are those of the Python class.
"""

from __future__ import annotations

import collections.abc
import importlib
import os
from collections.abc import Callable
from functools import wraps
from types import MemberDescriptorType
from typing import Any, TypeVar, cast

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])
V = TypeVar("V")


def _load() -> Any:
    if os.environ.get("ASLAB_PURE") == "1":
        return None
    try:
        core = importlib.import_module("._core", __package__)
    except ImportError:  # it was not built, or not for this interpreter
        return None
    for kind in (core.Ready, core.Awaited):
        collections.abc.Coroutine.register(kind)
    return core


_core = _load()
COMPILED: bool = _core is not None
"""Whether the compiled types are in use."""
_OF_PYTHON = {"__dict__", "__weakref__", "__slots__", "__new__", "__init__", "__class_getitem__"}
"""What belongs to how a Python class is made."""


def viewing(reference: F) -> F:
    """Return what makes the views of compiled slots, which export nothing themselves; or this function."""
    if not COMPILED:
        return reference

    def lease_view(source: Any) -> Any:
        return _core.lease_view(source) if isinstance(source, _core.Slot) else reference(source)

    return cast("F", wraps(reference)(lease_view))


def shared(name: str, reference: V) -> V:
    """Return the object of that name that compiled code uses as well; or this one."""
    found: V = getattr(_core, name) if COMPILED else reference
    return found


def compiled(reference: C) -> C:
    """Return the compiled class of that name, with the methods of this one; or this one."""
    if not COMPILED:
        return reference
    found: Any = getattr(_core, reference.__name__)
    own = set(vars(found))
    for base in reversed(reference.__mro__):
        if issubclass(found, base):  # it is compiled, and has its own already
            continue
        ours = vars(base) if base.__module__.startswith(f"{__package__}.") else {}
        for name, value in ours.items():
            if name in _OF_PYTHON or isinstance(value, MemberDescriptorType):
                continue
            taken = _core.with_shortcut(found, name, value)
            if name not in own:  # else it is all in C
                setattr(found, name, taken)
    for name in ("__doc__", "__module__", "__qualname__"):
        setattr(found, name, getattr(reference, name))
    given: C = found
    return given
