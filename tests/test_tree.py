"""The token tree against a plain list of tokens, over random histories."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.backends.base import PAGE_SLOTS
from anabranch.engine.pages import PagePool
from anabranch.engine.tree import Cursor, TokenTree

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def compute(
    tree: TokenTree, cursor: Cursor, contents: dict[tuple[int, int], int], most: int
) -> None:
    """Stand in for a pass: store up to `most` tokens of each node of a path.

    `contents` maps (page, slot) to the token that a forward pass would have written there.
    """
    path = list(cursor.node.ancestry())[::-1]
    for node in path:
        if node.computed == len(node.tokens):
            continue

        def copy(source: int, target: int) -> None:
            for slot in range(PAGE_SLOTS):
                contents[target, slot] = contents.get((source, slot), -1)

        end = min(node.end, node.frontier + most)
        if tree.pages_wanted(node, end) > tree.pool.free:
            return
        tree.allocate(node, end, copy)
        for position in range(node.frontier, end):
            page = node.pages[position // PAGE_SLOTS - node.start // PAGE_SLOTS]
            contents[page, position % PAGE_SLOTS] = node.tokens[position - node.start]
        tree.settle(node)
        if node.computed < len(node.tokens):
            return


def stored(cursor: Cursor, contents: dict[tuple[int, int], int]) -> list[int]:
    """What attention would read along the computed part of a path."""
    tokens = []
    for node in list(cursor.node.ancestry())[::-1]:
        table = node.table()
        for position in range(node.start, min(node.frontier, cursor.position)):
            tokens.append(contents[int(table[position // PAGE_SLOTS]), position % PAGE_SLOTS])
    return tokens


OPERATION = st.tuples(
    st.sampled_from(
        ["append", "append", "fork", "drop", "rewind", "compute", "compute", "open", "compact"]
    ),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    TOKENS,
)


@given(st.lists(OPERATION, max_size=40), st.integers(3, 60))
@settings(max_examples=300)
def test_cursors_read_their_own_tokens(history: list, pages: int) -> None:
    tree = TokenTree(PagePool(pages))
    live: list[tuple[Cursor, list[int]]] = []
    contents: dict[tuple[int, int], int] = {}
    for name, who, where, tokens in [("open", 0, 0, [1]), *history]:
        if name == "open" or not live:
            cursor, _ = tree.open("", 0, tokens)
            live.append((cursor, list(tokens)))
        else:
            index = who % len(live)
            cursor, expected = live[index]
            if name == "append":
                tree.append(cursor, tokens)
                expected.extend(tokens)
            elif name == "fork":
                at = 1 + where % cursor.position
                live.append((tree.fork(cursor, 0, at), expected[:at]))
            elif name == "rewind":
                at = 1 + where % cursor.position
                tree.rewind(cursor, at)
                del expected[at:]
            elif name == "drop":
                tree.drop(cursor)
                live.pop(index)
            elif name == "compact":
                before = tree.pool.free
                tree.compact(cursor.node)
                assert tree.pool.free >= before
            else:
                compute(tree, cursor, contents, 1 + where % 40)
        tree.check()
        for cursor, expected in live:
            assert cursor.path() == expected
            held = stored(cursor, contents)
            assert held == expected[: len(held)]
    for cursor, _ in live:
        tree.drop(cursor)
    tree.check()
    while leaves := [node for node in tree.nodes() if not node.children]:
        for node in leaves:
            tree.evict(node)
    assert tree.pool.free == pages
    assert not tree.roots


def test_equal_tokens_are_held_once() -> None:
    tree = TokenTree(PagePool(8))
    first, held = tree.open("", 0, [1, 2, 3])
    assert held == 0
    second, held = tree.open("", 1, [1, 2, 3, 4])
    assert held == 3
    assert second.node is first.node
    assert tree.append(first, [4]) == 1
    tree.append(first, [5])
    assert tree.append(second, [6]) == 0
    assert first.path() == [1, 2, 3, 4, 5]
    assert second.path() == [1, 2, 3, 4, 6]
    tree.check()


def test_scopes_share_nothing() -> None:
    tree = TokenTree(PagePool(8))
    first, _ = tree.open("a", 0, [1, 2, 3])
    second, held = tree.open("b", 0, [1, 2, 3])
    assert held == 0
    tree.drop(first)
    assert second.path() == [1, 2, 3]
    tree.drop(second)
    assert not tree.roots
    tree.check()
