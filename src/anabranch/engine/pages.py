"""Who holds which KV page: a free list and reference counts. No tensor is touched here."""

from __future__ import annotations


class PagePool:
    """Reference counts of a fixed number of pages.

    A page is free exactly when its count is 0. Several tree nodes may hold one page: the two halves
    of a split node, or a node and the one child that continues its open page.

    Attributes:
        refs: nodes that hold each page.
    """

    def __init__(self, pages: int) -> None:
        self.refs = [0] * pages
        self._free = list(range(pages - 1, -1, -1))

    def __len__(self) -> int:
        return len(self.refs)

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def take(self) -> int:
        """A free page, held once. The caller makes sure that there is one."""
        page = self._free.pop()
        self.refs[page] = 1
        return page

    def share(self, page: int) -> int:
        """Hold a page once more."""
        assert self.refs[page] > 0
        self.refs[page] += 1
        return page

    def release(self, page: int) -> None:
        """Let go of one hold."""
        assert self.refs[page] > 0
        self.refs[page] -= 1
        if self.refs[page] == 0:
            self._free.append(page)
