"""Who waits on whom right now, and the cycle of a deadlock.

Nodes are kinds of tasks and of what they wait on: all ``z_wr_iss`` tasks are one node. A task that starts
a wait inside another, as an allocation enters reclaim, records the whole chain: task, cache, vmalloc, reclaim.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from itertools import pairwise

_node: ContextVar[str] = ContextVar("aslab_wait_node", default="somebody")


class WaitGraph:
    """The current waits. Event loop's thread only."""

    def __init__(self) -> None:
        self._edges: dict[str, Counter[str]] = {}

    @staticmethod
    def be(node: str) -> None:
        """Name the kind of this task."""
        _node.set(node)

    @contextlib.contextmanager
    def on(self, *nodes: str) -> Iterator[None]:
        """Within this block, the task waits on the first node, which waits on the next, and so on."""
        chain = (_node.get(), *nodes)
        token = _node.set(chain[-1])
        edges = [(waiter, what) for waiter, what in pairwise(chain) if waiter != what]  # nested twice
        for waiter, what in edges:
            self._edges.setdefault(waiter, Counter())[what] += 1
        try:
            yield
        finally:
            _node.reset(token)
            for waiter, what in edges:
                self._edges[waiter][what] -= 1

    @contextlib.contextmanager
    def held(self, what: str) -> Iterator[None]:
        """Within this block, whoever waits on ``what`` waits on this task."""
        waiting = self._edges.setdefault(what, Counter())
        task = _node.get()
        waiting[task] += 1
        try:
            yield
        finally:
            waiting[task] -= 1

    def edges(self) -> dict[str, list[str]]:
        """What each node waits on, in alphabetical order."""
        found = {node: sorted(what for what, count in on.items() if count) for node, on in self._edges.items()}
        return {node: found[node] for node in sorted(found) if found[node]}

    def cycle(self) -> tuple[str, ...]:
        """The longest cycle, without its first node at the end again; empty if there is none.

        The longest says the most: the deadlock could have been avoided at any of its nodes.
        """
        edges = self.edges()
        best: tuple[str, ...] = ()

        def walk(path: list[str]) -> None:
            nonlocal best
            for following in edges.get(path[-1], ()):
                if following == path[0] and len(path) > len(best):
                    best = tuple(path)
                elif following not in path and following > path[0]:  # each cycle once, from its first name
                    walk([*path, following])

        for start in edges:
            walk([start])
        return best
