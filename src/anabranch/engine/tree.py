"""The token tree: prefix cache, search tree and batch in one structure.

A radix tree over token ids. A *node* holds a span of tokens and the pages of their keys and values;
a *cursor* is a position on a path, what a branch is to the engine. Forking copies a cursor. Two
cursors that add the same token at the same place share it: identical thoughts merge and are
computed once. A cursor that diverges inside a node splits it.

Pages lie on an absolute grid: page i of a path holds positions 16i to 16i+15. A node that starts
inside a page writes on in its parent's page if nobody else has; else it copies that one page when
it is first computed (copy on write).

Invariants, recounted by `TokenTree.check`:
- a page's reference count is the number of nodes that list it;
- `pins` of a node is the number of live cursors at or below it;
- a node with computed tokens has only fully computed ancestors;
- a node without pins holds computed tokens only: what nobody needs and nothing cost is removed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from anabranch.backends.base import F32, I32, PAGE_SLOTS
from anabranch.engine.pages import PagePool


class Node:
    """A span of tokens at positions `start..end-1`, and where their keys and values are.

    Attributes:
        tokens: the span, appended to in place while the node has no children.
        children: by first token.
        pages: page ids by grid index from `start // 16`; allocated as tokens are computed.
        computed: leading tokens whose keys and values are stored.
        pending: likewise once the pass under way has ended; 0 when it does not touch the node.
        known: largest `computed` ever, to tell computing from recomputing.
        cursors: live cursors whose position is in `start+1..end` (root: also 0).
        pins: live cursors at or below.
        tips: `[vocab]` logits kept for positions where cursors rest, by position.
        used: time of last use, in ticks of the tree's clock.
    """

    __slots__ = (
        "_table",
        "children",
        "computed",
        "cursors",
        "known",
        "pages",
        "parent",
        "pending",
        "pins",
        "start",
        "tips",
        "tokens",
        "used",
    )

    def __init__(self, parent: Node | None, start: int, tokens: list[int]) -> None:
        self.parent = parent
        self.start = start
        self.tokens = tokens
        self.children: dict[int, Node] = {}
        self.pages: list[int] = []
        self.computed = 0
        self.pending = 0
        self.known = 0
        self.cursors: set[Cursor] = set()
        self.pins = 0
        self.used = 0
        self.tips: dict[int, F32] = {}
        self._table: I32 | None = None

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)

    @property
    def frontier(self) -> int:
        """First position that is not computed."""
        return self.start + self.computed

    def ancestry(self) -> Iterator[Node]:
        """The node, its parent, and so on up to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def at(self, position: int) -> Node:
        """The node on this path that holds the token at `position`."""
        return next(node for node in self.ancestry() if node.start <= position)

    def table(self) -> I32:
        """Page ids of the whole path by grid index, up to this node's last page."""
        if self._table is None:
            own = np.asarray(self.pages, np.int32)
            above = self.parent.table() if self.parent is not None else own[:0]
            self._table = np.concatenate([above[: self.start // PAGE_SLOTS], own])
        return self._table

    def page_of(self, position: int) -> int:
        """The page that holds `position`, which must lie in this node's pages."""
        return self.pages[position // PAGE_SLOTS - self.start // PAGE_SLOTS]


class Cursor:
    """A live position on a path: the engine's side of a branch.

    Attributes:
        node: the node that holds the token before `position`.
        position: number of tokens on the path.
        key: 64-bit key of the branch's random stream.
    """

    __slots__ = ("key", "node", "position")

    def __init__(self, node: Node, position: int, key: int) -> None:
        self.node, self.position, self.key = node, position, key

    def path(self) -> list[int]:
        """The token ids of the whole path."""
        parts = [n.tokens[: self.position - n.start] for n in self.node.ancestry()]
        return [token for part in reversed(parts) for token in part]


class TokenTree:
    """All nodes and cursors of one model's cache.

    Roots are kept per cache scope; nothing is ever shared between scopes.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.roots: dict[str, Node] = {}
        self.clock = 0

    # ---- cursors -------------------------------------------------------------------------------

    def open(self, scope: str, key: int, tokens: Sequence[int]) -> tuple[Cursor, int]:
        """A new cursor after `tokens`; also how many of them the tree held already."""
        root = self.roots.setdefault(scope, Node(None, 0, []))
        cursor = Cursor(root, 0, key)
        root.cursors.add(cursor)
        root.pins += 1
        return cursor, self.append(cursor, tokens)

    def fork(self, cursor: Cursor, key: int, position: int | None = None) -> Cursor:
        """A new cursor at `position` of the same path (default: its tip). Nothing is computed."""
        at = cursor.position if position is None else position
        node = self._holder(cursor.node, at)
        twin = Cursor(node, at, key)
        node.cursors.add(twin)
        for above in node.ancestry():
            above.pins += 1
        return twin

    def append(self, cursor: Cursor, tokens: Sequence[int]) -> int:
        """Move a cursor over `tokens`, adding those that the tree does not hold.

        Returns:
            How many of them the tree held already.
        """
        held = done = 0
        while done < len(tokens):
            node, inside = cursor.node, cursor.position - cursor.node.start
            if inside == len(node.tokens) and (child := node.children.get(tokens[done])):
                node, inside = self._descend(cursor, child), 0
            run = _common(node.tokens, inside, tokens, done)
            if run == 0:
                break
            cursor.position += run
            held, done = held + run, done + run
        if done < len(tokens):
            self._grow(cursor, tokens[done:])
        return held

    def rewind(self, cursor: Cursor, position: int) -> None:
        """Move a cursor back to an earlier position of its path."""
        node = self._holder(cursor.node, position)
        cursor.position = position
        left = list(itertools.takewhile(lambda n: n is not node, cursor.node.ancestry()))
        for below in left:
            below.pins -= 1
        cursor.node.cursors.remove(cursor)
        node.cursors.add(cursor)
        cursor.node = node
        self.sweep([*left, node])

    def drop(self, cursor: Cursor) -> None:
        """End a cursor. Its nodes stay as cache if they hold computed tokens."""
        self.clock += 1
        path = list(cursor.node.ancestry())
        cursor.node.cursors.remove(cursor)
        for node in path:
            node.pins -= 1
            node.used = self.clock
        self.sweep(path)

    # ---- pages ---------------------------------------------------------------------------------

    def pages_wanted(self, node: Node, end: int) -> int:
        """Free pages needed to store this node's tokens before position `end`."""
        last = (end - 1) // PAGE_SLOTS
        missing = last - node.start // PAGE_SLOTS + 1 - len(node.pages)
        if not node.pages and missing > 0 and self._continues(node):
            missing -= 1
        return max(0, missing)

    def allocate(self, node: Node, end: int, copy: Callable[[int, int], None]) -> None:
        """Give the node pages up to position `end`; the caller has made sure that they are free.

        Args:
            copy: copies one page, source to target: called when the open page of the parent must
                be copied because somebody else wrote on in it.
        """
        last = (end - 1) // PAGE_SLOTS
        filled = self.pool.filled
        if not node.pages and node.start % PAGE_SLOTS:
            assert node.parent is not None
            shared = node.parent.page_of(node.start - 1)
            if self._continues(node):
                node.pages.append(self.pool.share(shared))
            else:
                node.pages.append(self.pool.take())
                copy(shared, node.pages[0])
        while node.start // PAGE_SLOTS + len(node.pages) <= last:
            if node.pages:
                filled[node.pages[-1]] = PAGE_SLOTS
            node.pages.append(self.pool.take())
        tail, used = node.pages[-1], (end - 1) % PAGE_SLOTS + 1
        filled[tail] = max(used, filled[tail]) if node.children else used
        node._table = None

    def evict(self, node: Node) -> None:
        """Release the pages of a node none of whose children holds any.

        Without pins the node leaves the tree: cache eviction. With pins its tokens stay and will be
        computed again when next needed: preemption.
        """
        assert all(child.computed == 0 and not child.pages for child in node.children.values())
        self._free_pages(node)
        self.sweep([node])

    def _continues(self, node: Node) -> bool:
        """Whether the node may write on in its parent's open page: nobody wrote there before."""
        if node.start % PAGE_SLOTS == 0:
            return False
        assert node.parent is not None
        page = node.parent.page_of(node.start - 1)
        return self.pool.filled[page] == node.start % PAGE_SLOTS

    def _free_pages(self, node: Node) -> None:
        for page in node.pages:
            self.pool.release(page)
        node.pages, node.computed, node._table = [], 0, None
        node.tips.clear()

    # ---- shape ---------------------------------------------------------------------------------

    def _holder(self, node: Node, position: int) -> Node:
        """The node of this path whose cursors may stand at `position`."""
        return (
            node.at(position - 1) if position else next(n for n in node.ancestry() if not n.parent)
        )

    def _descend(self, cursor: Cursor, child: Node) -> Node:
        cursor.node.cursors.remove(cursor)
        child.cursors.add(cursor)
        child.pins += 1
        cursor.node = child
        return child

    def _grow(self, cursor: Cursor, tokens: Sequence[int]) -> None:
        """Add tokens that the tree does not hold after the cursor, and move it over them."""
        node, inside = cursor.node, cursor.position - cursor.node.start
        if inside < len(node.tokens):
            node = self._split(node, inside)
        if node.children or node.parent is None:
            child = Node(node, cursor.position, list(tokens))
            node.children[tokens[0]] = child
            self._descend(cursor, child)
        else:
            node.tokens.extend(tokens)
        cursor.position += len(tokens)

    def _split(self, node: Node, count: int) -> Node:
        """Cut a node after `count` tokens; returns the new upper half.

        The lower half keeps its identity, so that work under way on it stays valid.
        """
        assert node.parent is not None
        assert 0 < count < len(node.tokens)
        upper = Node(node.parent, node.start, node.tokens[:count])
        node.parent.children[upper.tokens[0]] = upper
        upper.pins, upper.used = node.pins, node.used
        upper.computed, upper.known = min(count, node.computed), min(count, node.known)
        upper.pending, node.pending = min(count, node.pending), max(0, node.pending - count)
        cut = node.start + count
        upper.tips = {p: node.tips.pop(p) for p in list(node.tips) if p <= cut}
        upper.cursors = {c for c in node.cursors if c.position <= cut}
        for cursor in upper.cursors:
            cursor.node = upper
        node.cursors -= upper.cursors
        node.pins -= len(upper.cursors)
        node.parent, node.start, node.tokens = upper, cut, node.tokens[count:]
        node.computed, node.known = max(0, node.computed - count), max(0, node.known - count)
        upper.children[node.tokens[0]] = node
        self._split_pages(upper, node)
        return upper

    def _split_pages(self, upper: Node, lower: Node) -> None:
        first = upper.start // PAGE_SLOTS
        kept = (lower.start - 1) // PAGE_SLOTS - first + 1
        upper.pages, rest = lower.pages[:kept], lower.pages[kept:]
        if lower.computed or lower.pending:
            if lower.start % PAGE_SLOTS:
                rest = [self.pool.share(upper.pages[-1]), *rest]
            lower.pages = rest
        else:
            # Nothing of it is stored: it takes pages when its turn comes, like its new sibling.
            lower.pages = []
            for page in rest:
                self.pool.release(page)
        lower._table = None

    def sweep(self, nodes: Iterable[Node]) -> None:
        """Remove what nobody needs and nothing cost, from the leaves up."""
        for node in nodes:
            self._trim(node)
            if node.pins or node.children or node.computed or node.pending:
                continue
            self._free_pages(node)
            if node.parent is not None:
                del node.parent.children[node.tokens[0]]
            else:
                self.roots = {s: root for s, root in self.roots.items() if root is not node}

    def _trim(self, node: Node) -> None:
        """Cut uncomputed tokens off the end of a leaf that no cursor has reached."""
        if node.children:
            return
        need = max((c.position - node.start for c in node.cursors), default=0)
        keep = max(need, node.computed, node.pending)
        if 0 < keep < len(node.tokens):
            del node.tokens[keep:]
            node.known = min(node.known, keep)

    # ---- views ---------------------------------------------------------------------------------

    def nodes(self) -> Iterator[Node]:
        """Every node, parents before children."""
        stack = list(self.roots.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check(self) -> None:
        """Recount every invariant; raises AssertionError where one is broken."""
        refs = [0] * len(self.pool)
        for node in self.nodes():
            for page in node.pages:
                refs[page] += 1
            below = sum(child.pins for child in node.children.values())
            assert node.pins == len(node.cursors) + below, "pins"
            assert node.parent is None or node.tokens, "empty node"
            for token, child in node.children.items():
                assert child.parent is node, "parent link"
                assert child.start == node.end, "child does not start where its parent ends"
                assert child.tokens[0] == token, "child under the wrong token"
                assert child.computed == 0 or node.computed == len(node.tokens), "hole above"
            for cursor in node.cursors:
                assert cursor.node is node, "cursor link"
                low = node.start + (node.parent is not None)
                assert low <= cursor.position <= node.end, "cursor outside its node"
            assert 0 <= node.computed <= len(node.tokens), "computed beyond the tokens"
            assert node.computed <= node.known, "known less than computed"
            if node.computed:
                held = (node.frontier - 1) // PAGE_SLOTS - node.start // PAGE_SLOTS + 1
                assert len(node.pages) >= held, "computed tokens without a page"
            if node.pins == 0 and node.pending == 0 and node.parent is not None:
                assert node.computed == len(node.tokens), "an unneeded node that holds nothing"
        assert refs == self.pool.refs, "page reference counts"
        assert self.pool.free == refs.count(0), "free list"


def _common(left: Sequence[int], i: int, right: Sequence[int], j: int) -> int:
    """Length of the common run of `left[i:]` and `right[j:]`."""
    run = 0
    limit = min(len(left) - i, len(right) - j)
    if limit > 1 and left[i : i + limit] == right[j : j + limit]:
        return limit
    while run < limit and left[i + run] == right[j + run]:
        run += 1
    return run
