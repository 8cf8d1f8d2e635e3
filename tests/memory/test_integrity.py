"""The books that are compared: a lie in any of them is found, with the terms that differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from scalesim.memory.audit.integrity import IntegrityError, check_integrity
from scalesim.memory.lease import Lease
from scalesim.memory.manager import MemoryManager
from scalesim.memory.tree.prefix_tree import TEXT
from scalesim.memory.tree.run import Run, Transfer
from scalesim.memory.tree.segment import Segment
from tests.memory.test_residency import SIZE, manager, tokens, turn


@dataclass
class Books:
    """One agent's state is held by ``lease`` (``held`` is shared), another's is idle."""

    memory: MemoryManager
    lease: Lease
    held: Segment
    idle: Segment


@pytest.fixture
def books() -> Books:
    memory = manager(12, 12)
    turn(memory, 1, 2)
    turn(memory, 2, 2)
    lease = memory.acquire(1, tokens(1, 2 * SIZE + 1), 4)
    assert lease is not None and lease.is_ready
    (idle,) = (one for one in memory.tree if not one.pins and not one.is_partial)
    check_integrity(memory, [lease])
    return Books(memory, lease, lease.end, idle)


def page_of_two(books: Books) -> None:
    books.lease.private.append(books.held.device[0])


def page_freed_and_kept(books: Books) -> None:
    books.memory.device.free(books.lease.private[:1])


def page_forgotten(books: Books) -> None:
    books.lease.private.pop()


def segment_uncounted(books: Books) -> None:
    books.memory.tree.num_segments += 1


def tokens_cut(books: Books) -> None:
    books.held.tokens = books.held.tokens[:-4]


def under_anothers_key(books: Books) -> None:
    children = books.memory.tree.root(TEXT).children
    key = next(key for key, child in children.items() if child is books.held)
    children[b"another"] = children.pop(key)


def children_miscounted(books: Books) -> None:
    books.held.device_children += 1


def block_not_ready(books: Books) -> None:
    books.held.device.valid -= 1


def block_saved_nowhere(books: Books) -> None:
    books.idle.host = Run([], 1)


def pinned_by_nobody(books: Books) -> None:
    books.idle.pins += 1


def row_of_nobody(books: Books) -> None:
    books.memory.table.allocate()


def shares_more_than_its_path(books: Books) -> None:
    books.lease.num_shared += 1


def a_save_too_many(books: Books) -> None:
    books.memory.residency.transfers.saving_pages += 1


def a_demand_too_many(books: Books) -> None:
    books.memory.residency.transfers.num_demand += 1


def waits_for_nothing(books: Books) -> None:
    books.lease.num_pending_loads += 1


def loads_for_nobody(books: Books) -> None:
    books.memory.waiters.num_pages += 1


def moves_without_a_ticket(books: Books) -> None:
    books.idle.host = Run([])
    books.idle.host.transfer = Transfer("out", "save", [(books.idle, 1)])


def ticket_of_nothing(books: Books) -> None:
    books.memory.residency.transfers[99] = Transfer("out", "fill", [])


def transfer_of_others(books: Books) -> None:
    books.idle.host = Run([])
    transfer = books.idle.host.transfer = Transfer("out", "fill", [])
    transfer.tickets.add(99)
    books.memory.residency.transfers[99] = transfer


def idle_and_not_in_the_order(books: Books) -> None:
    books.memory.ranking.forget(books.idle)


def owned_by_a_stranger(books: Books) -> None:
    books.idle.owners[books.memory.owners.agent(3)] = 1


LIES: dict[Callable[[Books], None], str] = {
    page_of_two: r"device pages .* are held by .* and private of row",
    page_freed_and_kept: "are free and held by",
    page_forgotten: r"usable; lost: \[\d+\]",
    segment_uncounted: r"\d found, \d kept",
    tokens_cut: "token bytes, .* in its blocks",
    under_anothers_key: "not its key's child",
    children_miscounted: "counts 1 children on the device",
    block_not_ready: "is ready, but|ready .* loading != ",
    block_saved_nowhere: "1 valid .* 0 coming != 0 host pages",
    pinned_by_nobody: "1 pins, held by 0 of 1 leases",
    row_of_nobody: r"rows \[\d\] of 1 leases \+ \d free != 8",
    shares_more_than_its_path: "row 1: 3 != 2",
    a_save_too_many: "1 saving, 0 found",
    a_demand_too_many: "1 != 0 demands",
    waits_for_nothing: "row 1 waits for 1 loads; 0 know of it",
    loads_for_nobody: "1 loading, 0 found",
    moves_without_a_ticket: "moves without a ticket",
    ticket_of_nothing: "1 transfers by ticket, 0 move",
    transfer_of_others: r"has shares \[\] in its transfer",
    idle_and_not_in_the_order: "may leave the device: True; in the order: False",
    owned_by_a_stranger: "who has no path through it",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_lie_is_found(lie: Callable[[Books], None], books: Books) -> None:
    lie(books)
    with pytest.raises(IntegrityError, match=LIES[lie]):
        check_integrity(books.memory, [books.lease])
