"""A page allocator of one's own, right and wrong: ``docs/check.md`` explains.

cd docs/examples
scalesim check allocator my_pool:StackPool
scalesim check allocator my_pool:ForgetfulPool    # fails, on purpose
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class StackPool:
    """Free pages on a stack: the page given back last is handed out first, which is easy on caches
    and hard on copies, since pages seldom follow each other."""

    def __init__(self, num_pages: int, *, first: int = 0) -> None:
        self.num_pages, self.first = num_pages, first
        self._stack = list(range(num_pages - 1, first - 1, -1))
        self._free = set(self._stack)
        self._fences = [-1] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._stack)

    @property
    def num_usable(self) -> int:
        return self.num_pages - self.first

    @property
    def num_used(self) -> int:
        return self.num_usable - self.num_free

    def allocate(self, count: int) -> list[int] | None:
        if count > len(self._stack):
            return None  # all or nothing
        pages = [self._stack.pop() for _ in range(count)]
        self._free.difference_update(pages)
        return pages

    def claim(self, pages: Sequence[int]) -> None:
        """Allocate these very pages, which are free: weights need consecutive ones."""
        self._free.difference_update(pages)
        self._stack = [page for page in self._stack if page in self._free]

    def free(self, pages: Sequence[int], fence: int = -1) -> None:
        for page in pages:
            assert self.first <= page < self.num_pages and page not in self._free, page
            self._fences[page] = fence
            self._free.add(page)
            self._stack.append(page)

    def fence(self, pages: Sequence[int]) -> int:
        return max((self._fences[page] for page in pages), default=-1)

    def free_mask(self) -> npt.NDArray[np.bool_]:
        return np.isin(np.arange(self.num_pages), self._stack)

    def check(self) -> None:
        assert sorted(self._stack) == sorted(self._free), "the stack and the set differ"


class ForgetfulPool(StackPool):
    """It forgets which step may still touch a page that was given back. Each method alone looks
    right, and most runs come out right: a load has to reach the page before the step left it."""

    def fence(self, pages: Sequence[int]) -> int:
        return -1
