"""What vLLM hands to the plug-in, by the methods that the plug-in uses: a queue of free blocks,
blocks, chunks and requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Block:
    block_id: int
    block_hash: Any = None


class ListQueue:
    """Free blocks in a list, first in, first out."""

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = list(blocks)
        self.fake_free_list_head = "the head"

    @property
    def num_free_blocks(self) -> int:
        return len(self.blocks)

    def remove(self, block: Block) -> None:
        if block not in self.blocks:
            raise RuntimeError(f"remove() called on an invalid block: {block}")
        self.blocks.remove(block)

    def append(self, block: Block) -> None:
        self.append_n([block])

    def append_n(self, blocks: list[Block]) -> None:
        assert not set(map(id, blocks)) & set(map(id, self.blocks))
        self.blocks += blocks

    def prepend_n(self, blocks: list[Block]) -> None:
        assert not set(map(id, blocks)) & set(map(id, self.blocks))
        self.blocks[:0] = blocks

    def get_all_free_blocks(self) -> list[Block]:
        return list(self.blocks)


@dataclass
class Chunk:
    chunk_id: int
    ref_cnt: int = -1


@dataclass
class Context:
    """A request as the host tier sees it: ``depths`` are the places of its keys."""

    req_id: str
    kv_transfer_params: dict[str, Any] | None = None
    depths: dict[Any, int] = field(default_factory=dict)

    def get_offload_key_position(self, key: Any) -> int | None:
        return self.depths.get(key)
