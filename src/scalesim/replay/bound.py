"""What no policy can beat: Belady's page loads on a known order, and what the hardware allows.

Shares nothing with the planner or the memory it judges: it sees token counts and content only.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

NEVER = 1 << 60


@dataclass(frozen=True, slots=True)
class Access:
    """One request: the ids of its pages in order; the first ``num_read`` are its prompt's, which
    it needs before it starts, the others it computes. It ended before request ``until`` began; 0:
    before the next one."""

    pages: tuple[int, ...]
    num_read: int
    until: int = 0


def page_ids(tokens: bytes, page_bytes: int, known: dict[int, int]) -> tuple[int, ...]:
    """An id for each whole page of ``tokens``: equal ids, equal tokens up to there."""
    ids, chain = [], 0
    for start in range(0, len(tokens) - page_bytes + 1, page_bytes):
        chain = xxhash.xxh3_64_intdigest(tokens[start : start + page_bytes], seed=chain)
        ids.append(known.setdefault(chain, len(known)))
    return tuple(ids)


def belady_loads(
    accesses: Sequence[Access], capacity: int, *, held_to_end: bool = False
) -> list[int]:
    """Pages that each access must load into ``capacity`` pages when always the page that is needed
    last makes room (Belady 1966). What was never there before is computed, not loaded. An access
    needs its pages for a moment, or to the end of its request where ``held_to_end``: then less is
    left for the others."""
    following = [[NEVER] * len(access.pages) for access in accesses]
    later: dict[int, int] = {}
    for index in range(len(accesses) - 1, -1, -1):
        for place, page in enumerate(accesses[index].pages):
            following[index][place] = later.get(page, NEVER)
            later[page] = index
    held: dict[int, int] = {}  # page -> when it is needed next
    pins: Counter[int] = Counter()
    heap: list[tuple[int, int]] = []
    ends: list[tuple[int, int]] = []
    seen: set[int] = set()
    loads = []
    for index, access in enumerate(accesses):
        while ends and ends[0][0] <= index:
            for page in accesses[heapq.heappop(ends)[1]].pages:
                pins[page] -= 1
                if pins[page] == 0 and held[page] == NEVER:
                    del held[page]
                elif pins[page] == 0:
                    heapq.heappush(heap, (-held[page], page))
        count = 0
        for place, page in enumerate(access.pages):
            count += place < access.num_read and page in seen and page not in held
            held[page] = following[index][place]
            pins[page] += 1
        while len(held) > capacity and heap:
            at, page = heapq.heappop(heap)
            if held.get(page) == -at and not pins[page]:
                del held[page]
        until = access.until if held_to_end else 0
        heapq.heappush(ends, (max(until, index + 1), index))
        seen.update(access.pages)
        loads.append(count)
    return loads


def roofline(turns: int, all_resident_s: float, load_bytes: float, link_rate: float) -> float:
    """Turns a second that neither computing with everything resident nor the link can exceed."""
    return turns / max(all_resident_s, load_bytes / link_rate)


def floor_s(flops: float, gemm_rate: float, read_bytes: float, memory_rate: float) -> float:
    """Seconds that the arithmetic or the reading takes at least, whatever is resident."""
    return max(flops / gemm_rate, read_bytes / memory_rate)
