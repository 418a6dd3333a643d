"""The token tree: prefix cache, search tree and batch in one structure.

A radix tree over token ids. A *node* holds a span of tokens and the pages of their keys and values;
a *cursor* is a position on a path, what a branch is to the engine. Forking copies a cursor. Two
cursors that add the same token at the same place share it: identical thoughts merge and are
computed once. A cursor that diverges inside a node splits it.

Pages lie on an absolute grid: page i of a path holds positions 16i to 16i+15. A node that starts
inside a page writes on in its parent's page if nobody else holds it; else it copies that one page
when it is first computed (copy on write).

Invariants, recounted by `TokenTree.check`:
- a page's reference count is the number of nodes that list it;
- a node lists exactly the pages of its tokens that are stored, or will be by the pass under way;
- `pins` of a node is the number of live cursors at or below it;
- a node with computed tokens has only fully computed ancestors;
- a node without pins holds computed tokens only: what nobody needs and nothing cost is removed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from anabranch.backends.base import F32, I32, PAGE_SLOTS
from anabranch.engine.pages import PagePool


class Node:
    """A span of tokens at positions `start..end-1`, and where their keys and values are.

    Attributes:
        tokens: the span, appended to in place while the node has no children.
        children: by first token.
        pages: page ids by grid index from `start // 16`, for the `pending` tokens.
        computed: leading tokens whose keys and values are stored.
        pending: likewise once the pass under way has ended; else equal to `computed`.
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

    def path(self, start: int, end: int) -> list[int]:
        """The token ids of this path at positions `start` to `end - 1`."""
        if start >= self.start:
            return self.tokens[start - self.start : end - self.start]
        nodes = list(itertools.takewhile(lambda n: n.end > start, self.ancestry()))
        tokens: list[int] = []
        for node in reversed(nodes):
            tokens += node.tokens[max(0, start - node.start) : max(0, end - node.start)]
        return tokens

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

    def path(self, start: int = 0) -> list[int]:
        """The token ids of the path, from position `start`."""
        return self.node.path(start, self.position)


class TokenTree:
    """All nodes and cursors of one model's cache.

    Roots are kept per cache scope; nothing is ever shared between scopes.

    Attributes:
        appended: tokens that cursors were ever moved over by `append`; `held` of them were in the
            tree already.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.roots: dict[str, Node] = {}
        self.clock = self.appended = self.held = 0

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
        self.appended += len(tokens)
        self.held += held
        return held

    def rewind(self, cursor: Cursor, position: int) -> None:
        """Move a cursor back to an earlier position of its path."""
        tip, node = cursor.node, self._holder(cursor.node, position)
        for below in itertools.takewhile(lambda n: n is not node, tip.ancestry()):
            below.pins -= 1
        tip.cursors.remove(cursor)
        node.cursors.add(cursor)
        cursor.node, cursor.position = node, position
        self._sweep(tip)

    def drop(self, cursor: Cursor) -> None:
        """End a cursor. Its nodes stay as cache if they hold computed tokens."""
        self.clock += 1
        cursor.node.cursors.remove(cursor)
        for node in cursor.node.ancestry():
            node.pins -= 1
            node.used = self.clock
        self._sweep(cursor.node)

    # ---- pages ---------------------------------------------------------------------------------

    def pages_wanted(self, node: Node, end: int) -> int:
        """Free pages needed to store this node's tokens before position `end`."""
        missing = _span(node.start, end) - len(node.pages)
        return missing - 1 if not node.pages and self._continues(node) else missing

    def allocate(self, node: Node, end: int, copy: Callable[[int, int], None]) -> None:
        """Begin a chunk: give the node pages for its tokens before position `end`.

        The caller has made sure that they are free, and ends the chunk by `settle` or `abandon`.

        Args:
            copy: copies one page, source to target: called when the open page of the parent must
                be copied because somebody else holds it too.
        """
        node.pending, node._table = end - node.start, None
        if not node.pages and node.start % PAGE_SLOTS:
            assert node.parent is not None
            shared = node.parent.pages[-1]
            if self._continues(node):
                node.pages.append(self.pool.share(shared))
            else:
                node.pages.append(self.pool.take())
                copy(shared, node.pages[0])
        while len(node.pages) < _span(node.start, end):
            node.pages.append(self.pool.take())

    def settle(self, node: Node) -> None:
        """End a chunk: what was pending is computed."""
        node.computed = node.pending
        node.known = max(node.known, node.computed)

    def abandon(self, node: Node) -> None:
        """End a chunk that was not computed: nothing of it stays."""
        self._keep_pages(node, node.computed)
        self._sweep(node)

    def evict(self, node: Node) -> None:
        """Release the pages of a node none of whose children holds any.

        Without pins the node leaves the tree: cache eviction. With pins its tokens stay and will be
        computed again when next needed: preemption.
        """
        assert not any(child.pages for child in node.children.values())
        self._keep_pages(node, 0)
        self._sweep(node)

    def compact(self, node: Node) -> None:
        """Let one page serve each grid index of a path, so that its copies cost nothing.

        A copy of an open page holds what the page it was copied from holds of this path. Afterwards
        the stored tokens of the path take as few pages as if nobody had ever left it.
        """
        for below, above in itertools.pairwise(node.ancestry()):
            if below.pages and below.start % PAGE_SLOTS:
                self.pool.release(above.pages[-1])
                above.pages[-1] = self.pool.share(below.pages[0])
                above._table = None

    def _continues(self, node: Node) -> bool:
        """Whether the node may write on in its parent's open page: only its own path holds it."""
        if node.start % PAGE_SLOTS == 0:
            return False
        assert node.parent is not None
        page = node.parent.pages[-1]
        above = itertools.takewhile(lambda n: page in n.pages[-1:], node.parent.ancestry())
        return self.pool.refs[page] == sum(1 for _ in above)

    def _keep_pages(self, node: Node, count: int) -> None:
        """Release all pages but those of the first `count` tokens, which are stored."""
        kept = _span(node.start, node.start + count)
        for page in node.pages[kept:]:
            self.pool.release(page)
        del node.pages[kept:]
        node.computed = node.pending = count
        node._table = None
        if count == 0:
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
        cut = node.start + count
        upper.tips = {p: node.tips.pop(p) for p in list(node.tips) if p <= cut}
        upper.cursors = {c for c in node.cursors if c.position <= cut}
        for cursor in upper.cursors:
            cursor.node = upper
        node.cursors -= upper.cursors
        node.pins -= len(upper.cursors)
        node.parent, node.start, node.tokens = upper, cut, node.tokens[count:]
        upper.computed, node.computed = _divide(node.computed, count)
        upper.pending, node.pending = _divide(node.pending, count)
        upper.known, node.known = _divide(node.known, count)
        upper.children[node.tokens[0]] = node
        self._split_pages(upper, node)
        return upper

    def _split_pages(self, upper: Node, lower: Node) -> None:
        kept = _span(upper.start, lower.start)
        upper.pages, lower.pages = lower.pages[:kept], lower.pages[kept:]
        if lower.pending and lower.start % PAGE_SLOTS:
            lower.pages.insert(0, self.pool.share(upper.pages[-1]))
        lower._table = None

    def _sweep(self, node: Node) -> None:
        """Remove what nobody needs and nothing cost, from this node up."""
        self._trim(node)
        while not (node.pins or node.children or node.pending):
            if node.parent is None:
                self.roots = {s: root for s, root in self.roots.items() if root is not node}
                return
            del node.parent.children[node.tokens[0]]
            node = node.parent
            self._trim(node)

    def _trim(self, node: Node) -> None:
        """Cut uncomputed tokens off the end of a leaf that no cursor has reached."""
        if node.children or any(c.position == node.end for c in node.cursors):
            return
        need = max((c.position - node.start for c in node.cursors), default=0)
        keep = max(need, node.pending)
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

    def held_pages(self) -> int:
        """Pages that live cursors stand on; all others in use are cache, there to be taken."""
        pages: set[int] = set()
        stack = [root for root in self.roots.values() if root.pins]
        while stack:
            node = stack.pop()
            pages.update(node.pages)
            stack.extend(child for child in node.children.values() if child.pins)
        return len(pages)

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
            assert 0 <= node.computed <= node.pending <= len(node.tokens), "pending"
            assert node.computed <= node.known <= len(node.tokens), "known less than computed"
            assert len(node.pages) == _span(node.start, node.start + node.pending), "pages"
            assert all(node.start < p <= node.frontier for p in node.tips), "tip not computed"
            if node.pins == 0:
                assert node.pending == len(node.tokens), "an unneeded token that is not stored"
                assert node.parent is not None or node.children, "an unneeded root"
        assert refs == self.pool.refs, "page reference counts"
        assert self.pool.free == refs.count(0), "free list"


def _span(start: int, end: int) -> int:
    """Pages of the grid that positions `start` to `end - 1` touch."""
    return (end - 1) // PAGE_SLOTS - start // PAGE_SLOTS + 1 if end > start else 0


def _divide(count: int, first: int) -> tuple[int, int]:
    """How many of `count` leading tokens are among the `first`, and how many are not."""
    return min(count, first), max(0, count - first)


def _common(left: Sequence[int], i: int, right: Sequence[int], j: int) -> int:
    """Length of the common run of `left[i:]` and `right[j:]`."""
    run = 0
    limit = min(len(left) - i, len(right) - j)
    if limit > 1 and left[i : i + limit] == right[j : j + limit]:
        return limit
    while run < limit and left[i + run] == right[j + run]:
        run += 1
    return run
