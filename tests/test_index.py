"""Where emergency objects are looked up: list, tree and hash all keep what a dict keeps, the tree in few steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aslab.lab._story._index import INDEXES, Index, TreeIndex, _Node

PAGE = 4096

kinds = pytest.mark.parametrize("kind", list(INDEXES))
steps = st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 40)), max_size=80)


def depth(tree: TreeIndex[int]) -> int:
    """Nodes on the longest way down."""
    deepest, level = 0, [tree._root] if tree._root else []
    while level:
        deepest += 1
        level = [below for node in level for below in (node.left, node.right) if below]
    return deepest


def in_order(tree: TreeIndex[int]) -> list[int]:
    found: list[int] = []
    stack: list[_Node[int]] = []
    node = tree._root
    while stack or node:
        while node:
            stack.append(node)
            node = node.left
        node = stack.pop()
        found.append(node.address)
        node = node.right
    return found


@kinds
@given(steps=steps)
def test_index_keeps_what_a_dict_keeps(kind: str, steps: list[tuple[str, int]]) -> None:
    index: Index[str] = INDEXES[kind]()
    model: dict[int, str] = {}
    for number, (what, page) in enumerate(steps):
        address = page * PAGE
        if what == "add" and address not in model:
            index.add(address, f"thing {number}")
            model[address] = f"thing {number}"
        elif what == "remove" and address in model:
            assert index.remove(address) == model.pop(address)
        elif what == "remove":
            with pytest.raises(KeyError):
                index.remove(address)
    for address, thing in model.items():
        assert index.remove(address) == thing
        with pytest.raises(KeyError):
            index.remove(address)


@given(pages=st.sets(st.integers(0, 2**36)))
def test_tree_is_sorted_by_address_whatever_the_order_of_adding(pages: set[int]) -> None:
    tree: TreeIndex[int] = TreeIndex()
    for page in pages:
        tree.add(page * PAGE, page)
    assert in_order(tree) == [page * PAGE for page in sorted(pages)]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("apart", [PAGE, 32 * PAGE])
def test_tree_stays_shallow_though_addresses_come_sorted(apart: int, backwards: bool) -> None:
    tree: TreeIndex[int] = TreeIndex()
    addresses = [2**46 + number * apart for number in range(10_000)]
    for address in reversed(addresses) if backwards else addresses:
        tree.add(address, address)
    assert depth(tree) <= 4 * 14  # a perfect one has 14, a list 10,000
    for address in addresses[::2]:
        tree.remove(address)
    assert depth(tree) <= 4 * 14
    assert in_order(tree) == addresses[1::2]


def test_tree_has_the_same_shape_whatever_the_order_of_adding() -> None:
    trees: list[TreeIndex[int]] = [TreeIndex(), TreeIndex()]
    for number in range(500):
        trees[0].add(number * PAGE, number)
        trees[1].add((499 - number) * PAGE, number)
    assert depth(trees[0]) == depth(trees[1])
