"""How emergency objects are looked up when freed: a list in 2012, a tree later, a hash in aslab.

There may be thousands, and freeing one finds it by its address. These are real structures in plain Python, so
that the cost of a lookup grows as it does in the kernel.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Index(Protocol[T]):
    """Things by unique address."""

    def add(self, address: int, thing: T) -> None:
        """Add a thing."""
        ...

    def remove(self, address: int) -> T:
        """Find a thing and remove it. It must be present."""
        ...


class ListIndex(Generic[T]):
    """A list, searched from its head, where the newest is."""

    def __init__(self) -> None:
        self._nodes: list[tuple[int, T]] = []

    def add(self, address: int, thing: T) -> None:
        """Add at the head: one step."""
        self._nodes.append((address, thing))

    def remove(self, address: int) -> T:
        """Takes as many steps as there are newer things."""
        nodes = self._nodes
        for number in range(len(nodes) - 1, -1, -1):
            if nodes[number][0] == address:
                return nodes.pop(number)[1]
        raise KeyError(address)


class _Node(Generic[T]):
    __slots__ = ("address", "left", "rank", "right", "thing")

    def __init__(self, address: int, thing: T) -> None:
        self.address = address
        self.thing = thing
        self.rank = (
            address * 0x9E3779B97F4A7C15
        ) & 0xFFFFFFFFFFFFFFFF  # well distributed, and the same every time
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None


class TreeIndex(Generic[T]):
    """A search tree that stays shallow: a treap (Seidel and Aragon 1996). SPL uses a red-black tree."""

    def __init__(self) -> None:
        self._root: _Node[T] | None = None

    def add(self, address: int, thing: T) -> None:
        """Takes a number of steps logarithmic in the number of things."""
        self._root = _insert(self._root, _Node(address, thing))

    def remove(self, address: int) -> T:
        """As `add`."""
        parent: _Node[T] | None = None
        node = self._root
        while node is not None and node.address != address:
            parent, node = node, node.left if address < node.address else node.right
        if node is None:
            raise KeyError(address)
        below = _join(node.left, node.right)
        if parent is None:
            self._root = below
        elif parent.left is node:
            parent.left = below
        else:
            parent.right = below
        return node.thing


class HashIndex(Generic[T]):
    """A hash table: one step, however many there are."""

    def __init__(self) -> None:
        self._things: dict[int, T] = {}

    def add(self, address: int, thing: T) -> None:
        """One step."""
        self._things[address] = thing

    def remove(self, address: int) -> T:
        """One step."""
        return self._things.pop(address)


INDEXES: dict[str, Callable[[], Index[Any]]] = {"list": ListIndex, "tree": TreeIndex, "hash": HashIndex}
BATCH = 10  # removals between two readings of the clock


def removal_cost(kinds: Iterable[str], size: int, rounds: int) -> dict[str, float]:
    """Real seconds to find and remove a random one of ``size`` things, by kind of `INDEXES`.

    The best of several interleaved rounds. Blocks.
    """
    draw = random.Random(1)
    addresses = draw.sample(range(0, size * 2**20, 4096), size)
    kept = {kind: INDEXES[kind]() for kind in kinds}
    for structure in kept.values():
        for address in addresses:
            structure.add(address, address)
    best = dict.fromkeys(kept, float("inf"))
    for _ in range(rounds):
        victims = draw.sample(addresses, min(BATCH, size))
        for kind, structure in kept.items():
            begin = time.perf_counter()
            for address in victims:
                structure.remove(address)
            best[kind] = min(best[kind], (time.perf_counter() - begin) / len(victims))
            for address in victims:
                structure.add(address, address)
    return best


def _insert(root: _Node[T] | None, new: _Node[T]) -> _Node[T]:
    if root is None or new.rank > root.rank:
        new.left, new.right = _split(root, new.address)
        return new
    if new.address < root.address:
        root.left = _insert(root.left, new)
    else:
        root.right = _insert(root.right, new)
    return root


def _split(root: _Node[T] | None, address: int) -> tuple[_Node[T] | None, _Node[T] | None]:
    """Split into nodes below the address and the rest."""
    if root is None:
        return None, None
    if root.address < address:
        root.right, others = _split(root.right, address)
        return root, others
    below, root.left = _split(root.left, address)
    return below, root


def _join(left: _Node[T] | None, right: _Node[T] | None) -> _Node[T] | None:
    """Join two trees; all of the first is below all of the second."""
    if left is None or right is None:
        return left or right
    if left.rank > right.rank:
        left.right = _join(left.right, right)
        return left
    right.left = _join(left, right.left)
    return right
