"""An order that does not depend on memory addresses, for asyncio.

asyncio's ready queue is first in, first out, but in many places asyncio and anyio keep sets: of tasks,
futures, cancel scopes, or the arguments of `asyncio.as_completed`. A set is ordered by hashes, and these
are addresses. Here tasks and scopes hash by the order of their creation, and futures by the order in which
something first asks for their hash.

(There is no hook for replacing the classes of scopes and futures. So the names in these modules are patched
while a simulation runs, and so is the one function of anyio that polls by time.)
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
    """The number of a task or future in its loop, assigned now if it has none and there is no default."""
    number: int | None = getattr(future, "_number", default)
    if number is None:
        loop = future.get_loop()
        number = future._number = next(_numbers.setdefault(loop, itertools.count()))
    return number


class OrderedTask(asyncio.Task[Any]):
    """A task that sets keep in creation order: asyncio asks for its hash at once."""

    def __init__(self, coroutine: Any, *, context: contextvars.Context | None = None, **options: Any) -> None:
        self.context = contextvars.copy_context() if context is None else context  # an empty context is falsy
        super().__init__(coroutine, context=self.context, **options)
        if trace := getattr(self, "_source_traceback", None):
            del trace[-1]

    __hash__ = number_in


class _FutureType(type):
    """Makes `OrderedFuture` stand for every future while it replaces `asyncio.Future`."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Future) if cls is OrderedFuture else super().__instancecheck__(instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _Future) if cls is OrderedFuture else super().__subclasscheck__(subclass)


class OrderedFuture(_Future[Any], metaclass=_FutureType):
    """A future that sets keep in the order in which its hash was first asked for."""

    __hash__ = number_in


def _each_once(items: Iterable[Any] = ()) -> Any:
    """Replaces `set` in `asyncio.tasks`: the items, each once, in their own order."""
    found = dict.fromkeys(items)
    return list(found) if found else set()


@contextlib.contextmanager
def ordered() -> Iterator[None]:
    """Within this block, tasks, futures and cancel scopes are kept in an order that is the same each time."""
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
