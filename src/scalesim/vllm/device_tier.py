"""The device tier: vLLM's queue of free blocks, which gives out blocks in the order of the next
use of what they hold. Knows vLLM's queue and blocks by their methods alone.

A free block still holds what was computed in it, until it is given out. vLLM gives out what was
freed longest ago; here what is used last goes first, and blocks that hold nothing before that.

A request that computes takes one block after another. So a few more blocks are emptied ``ahead``
than are asked for, and most steps choose nothing and save nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from scalesim.order.key_table import KeyTable
from scalesim.order.leaving import LeavingOrder
from scalesim.order.owners import Key


class DeviceBlock(Protocol):
    """vLLM's ``KVCacheBlock``."""

    block_id: int

    @property
    def block_hash(self) -> Any:
        """The key of the block's content; ``None`` for a block that holds nothing to be found."""


class NextUseQueue:
    """Takes the place of a ``FreeKVCacheBlockQueue``, which it keeps up to date: a block is in this
    queue exactly if it is in that one. ``left`` is called with the blocks that are given out or
    emptied, by the keys of what they hold; a block still has its key unless vLLM took it meanwhile.
    ``empty`` then makes vLLM find nothing any more in the emptied ones, given by id.
    """

    def __init__(
        self,
        queue: Any,
        keys: KeyTable,
        left: Callable[[Mapping[Key, DeviceBlock]], object] = lambda blocks: None,
        empty: Callable[[set[int]], object] = lambda block_ids: None,
        ahead: int = 0,
    ) -> None:
        self.queue, self._left, self._make_empty, self._ahead = queue, left, empty, ahead
        self._order = LeavingOrder(keys)
        self._holding: dict[Key, Any] = {}  # free blocks by what they hold
        self._keys: dict[int, Key] = {}  # of the same blocks, by block id
        self._empty: dict[int, Any] = {}  # free blocks that hold nothing, or a second copy
        self._enter(queue.get_all_free_blocks())

    def __getattr__(self, name: str) -> Any:
        """What only reads the queue is the inner queue's, in its order."""
        return getattr(self.queue, name)

    @property
    def num_free_blocks(self) -> int:
        """Blocks in the queue."""
        count: int = self.queue.num_free_blocks
        return count

    @property
    def num_empty(self) -> int:
        """Blocks in the queue that hold nothing."""
        return len(self._empty)

    # -- taking ----------------------------------------------------------------------------------

    def popleft(self) -> Any:
        """Give out the block that leaves first. Raises ``ValueError`` if there is none."""
        if not self.num_free_blocks:
            raise ValueError("No free blocks available")  # as vLLM's queue says it
        return self.popleft_n(1)[0]

    def popleft_n(self, n: int) -> list[Any]:
        """Give out ``n`` blocks, in the order in which they leave."""
        assert n <= self.num_free_blocks, f"asked {n} blocks, {self.num_free_blocks} are free"
        taken = [self._empty.popitem()[1] for _ in range(min(n, len(self._empty)))]
        if len(taken) < n:
            taken += self._choose(n - len(taken))
        for block in taken:
            self.queue.remove(block)
        return taken

    def _choose(self, n: int) -> list[Any]:
        """The ``n`` blocks that leave first of those that hold something; the next ones are emptied
        ahead."""
        left = self._order.take(n + self._ahead)
        blocks = list(map(self._holding.pop, left))
        for block in blocks:
            del self._keys[block.block_id]
        self._left(dict(zip(left, blocks, strict=True)))
        if len(blocks) > n:
            more = {block.block_id: block for block in blocks[n:]}
            self._empty |= more
            self._make_empty(set(more))
        return blocks[:n]

    def peek_key(self) -> Key | None:
        """What leaves first of all that free blocks hold; ``None`` if they hold nothing."""
        return self._order.peek()

    def num_leaving_before(self, key: Key, limit: int) -> int:
        """How many blocks, up to ``limit``, can be given out before one that is used sooner than
        ``key`` is given out or emptied."""
        if limit <= len(self._empty):
            return limit
        limit -= len(self._empty)
        before = self._order.num_before(key, limit + self._ahead)
        return len(self._empty) + max(0, before - self._ahead)

    def remove(self, block: DeviceBlock) -> None:
        """Take ``block`` out: a request uses what it holds. Raises ``RuntimeError`` if it is not in
        the queue."""
        self.queue.remove(block)
        if self._empty.pop(block.block_id, None) is None:
            key = self._keys.pop(block.block_id)
            del self._holding[key]
            self._order.discard(key)

    # -- putting back ----------------------------------------------------------------------------

    def append(self, block: DeviceBlock) -> None:
        """Put ``block`` back."""
        self.queue.append(block)
        self._enter((block,))

    def append_n(self, blocks: list[Any]) -> None:
        """Put ``blocks`` back."""
        self.queue.append_n(blocks)
        self._enter(blocks)

    def prepend_n(self, blocks: list[Any]) -> None:
        """Put ``blocks`` back; vLLM puts those in front that hold nothing, as is the case here
        wherever they are put."""
        self.queue.prepend_n(blocks)
        self._enter(blocks)

    def _enter(self, blocks: Iterable[DeviceBlock]) -> None:
        holding, news = self._holding, []
        for block in blocks:
            key = block.block_hash
            if key is None or key in holding:
                self._empty[block.block_id] = block
                continue
            holding[key] = block
            self._keys[block.block_id] = key
            news.append(key)
        self._order.add_all(news)
