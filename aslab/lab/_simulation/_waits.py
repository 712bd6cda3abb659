"""Who waits on whom, as it is now: from it comes the cycle of a deadlock.

Tasks and what they wait on are nodes, by kind: all ``z_wr_iss`` tasks are one. A task that enters a wait
inside of another, as an allocation enters reclaim, leaves the whole chain: task, cache, vmalloc, reclaim.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from itertools import pairwise

_node: ContextVar[str] = ContextVar("aslab_wait_node", default="somebody")


class WaitGraph:
    """The waits under way. Event loop's thread only."""

    def __init__(self) -> None:
        self._edges: dict[str, Counter[str]] = {}

    @staticmethod
    def be(node: str) -> None:
        """Say what this task is."""
        _node.set(node)

    @contextlib.contextmanager
    def on(self, *nodes: str) -> Iterator[None]:
        """While this lasts, the task waits on the first, which waits on the next, and so on."""
        chain = (_node.get(), *nodes)
        token = _node.set(chain[-1])
        edges = [(waiter, what) for waiter, what in pairwise(chain) if waiter != what]  # entered twice
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
        """While this lasts, whoever waits on that thing waits on this task."""
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
        """The longest chain that ends where it began, its first node not repeated; empty if there is none.

        The longest tells the most: every node of it is a place where the chain could have been cut.
        """
        edges = self.edges()
        best: tuple[str, ...] = ()

        def walk(path: list[str]) -> None:
            nonlocal best
            for following in edges.get(path[-1], ()):
                if following == path[0] and len(path) > len(best):
                    best = tuple(path)
                elif following not in path and following > path[0]:  # each cycle once, from its first by name
                    walk([*path, following])

        for start in edges:
            walk([start])
        return best
