"""Order that does not depend on where objects lie in memory, for asyncio.

asyncio's ready queue is first in, first out, but in many places it and anyio keep sets: of tasks, of
futures, of cancel scopes, of what `asyncio.as_completed` was given. Their order is that of hashes, and
those are addresses. Here they hash by a number: that of their making for tasks and scopes, for futures
that of the moment when something first asks for their hash.

(Nobody offers a way to have scopes, or futures made by name, of another kind. So the modules' names for
them are changed while a simulation runs. So is the one thing in which anyio would look at tasks by time.)
"""

from __future__ import annotations

import asyncio
import asyncio.futures
import asyncio.tasks
import contextlib
import contextvars
import itertools
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import anyio._backends._asyncio as anyio_asyncio

from ._blocked import wait_all_tasks_blocked

_numbers: WeakKeyDictionary[asyncio.AbstractEventLoop, Iterator[int]] = WeakKeyDictionary()
_Future = asyncio.Future


def number_in(future: Any, default: int | None = None) -> int:
    """The number of a task or future in its loop; given now if it has none, unless there is a default."""
    number: int | None = getattr(future, "_number", default)
    if number is None:
        loop = future.get_loop()
        number = future._number = next(_numbers.setdefault(loop, itertools.count()))
    return number


class OrderedTask(asyncio.Task[Any]):
    """A task that sets keep by the order of their making: asyncio asks for its hash at once."""

    def __init__(self, coroutine: Any, *, context: contextvars.Context | None = None, **options: Any) -> None:
        self.context = contextvars.copy_context() if context is None else context  # an empty one is false
        super().__init__(coroutine, context=self.context, **options)
        if trace := getattr(self, "_source_traceback", None):
            del trace[-1]

    __hash__ = number_in


class _FutureType(type):
    """`OrderedFuture` stands for all futures where it has taken the name of their class."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Future) if cls is OrderedFuture else super().__instancecheck__(instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _Future) if cls is OrderedFuture else super().__subclasscheck__(subclass)


class OrderedFuture(_Future[Any], metaclass=_FutureType):
    """A future that sets keep by the order in which they came to know them."""

    __hash__ = number_in


def _each_once(items: Iterable[Any] = ()) -> Any:
    """What `asyncio.tasks` takes for `set`: the items in their order, where it goes through them."""
    found = dict.fromkeys(items)
    return list(found) if found else set()


@contextlib.contextmanager
def ordered() -> Iterator[None]:
    """While this lasts, tasks, futures and cancel scopes are kept in an order that is the same each time."""
    numbers = itertools.count()

    class OrderedScope(anyio_asyncio.CancelScope):
        __slots__ = ("_number",)

        def __init__(self, deadline: float = float("inf"), shield: bool = False) -> None:
            super().__init__(deadline, shield)
            self._number = next(numbers)

        def __hash__(self) -> int:
            return self._number

    gathering: Any = asyncio.tasks._GatheringFuture  # type: ignore[attr-defined]
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (anyio_asyncio, "CancelScope", OrderedScope),
            (asyncio, "Future", OrderedFuture),
            (asyncio.futures, "Future", OrderedFuture),
            (asyncio.tasks, "set", _each_once),
            (gathering, "__hash__", number_in),
            (anyio_asyncio.AsyncIOBackend, "wait_all_tasks_blocked", classmethod(wait_all_tasks_blocked)),
        ):
            stack.callback(_put_back, owner, name, vars(owner).get(name))
            setattr(owner, name, value)
        yield


def _put_back(owner: Any, name: str, value: Any) -> None:
    if value is None:
        delattr(owner, name)
    else:
        setattr(owner, name, value)
