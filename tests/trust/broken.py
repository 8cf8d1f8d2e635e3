"""Parts that are broken in one way each. They stand at the seams where any part may be another's:
a link, a pool, a runner, memory behind its own door, a scheduler. What they do wrong is what is
seen from there, so nothing inside a part is named.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from scalesim.batch import Batch, LaunchedStep, Runner, StepOutput
from scalesim.core import AgentId, Bytes2D, Fence, FinishReason
from scalesim.distance.estimates import Estimates, Source
from scalesim.memory.disk.slot_store import SlotStore
from scalesim.memory.image import BlockRange, CopiedBlocks, LiveBlocks, MemoryImage, image_of
from scalesim.memory.lease import AttachmentSpec, Lease
from scalesim.memory.leases.blobs import Blob
from scalesim.memory.links.link import Copies, Link, LinkAround
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.page_access import PageAccess
from scalesim.memory.pools.page_pool import PagePool
from scalesim.memory.tree.prefix_tree import TEXT
from scalesim.memory.tree.segment import Branch, Segment
from scalesim.memory.tree.walk import lineage
from scalesim.scheduler.scheduler import Scheduler
from scalesim.scheduler.sequence import Observer, Phase
from scalesim.scheduler.sequence import Sequence as Request
from scalesim.testing.array_slots import ArraySlots
from scalesim.testing.bed import MakeMemory

Ends = list[tuple[int, Exception | None]]


# -- links ----------------------------------------------------------------------------------------


def over(link: Callable[[Link], Link]) -> MakeMemory:
    """Memory that sees its copies through ``link``."""

    def make(**parts: Any) -> MemoryManager:
        return MemoryManager(**{**parts, "link": link(parts["link"])})

    return make


class CallsBackWhatHasBegun(LinkAround):
    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._gone: set[int] = set()

    def cancel(self, ticket: int) -> bool:
        if not self.link.cancel(ticket):
            self._gone.add(ticket)
        return True

    def poll(self) -> Ends:
        return [end for end in self.link.poll() if end[0] not in self._gone]


class Marking(LinkAround):
    """Knows the tickets of the copies that are ``meant``."""

    def __init__(self, link: Link, meant: Callable[[Copies], bool]) -> None:
        super().__init__(link)
        self._meant = meant
        self.marked: list[int] = []

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        tickets = self.link.submit(copies, after, urgent=urgent)
        self.marked += tickets if self._meant(copies) else []
        return tickets


class HidesErrors(Marking):
    def poll(self) -> Ends:
        return [(ticket, None if ticket in self.marked else error)
                for ticket, error in self.link.poll()]  # fmt: skip


class EndsEarly(Marking):
    told: frozenset[int] = frozenset()

    def poll(self) -> Ends:
        early: Ends = [(ticket, None) for ticket in self.marked if ticket not in self.told]
        self.told |= set(self.marked)
        return early + [end for end in self.link.poll() if end[0] not in self.told]


class LosesAnEnd(LinkAround):
    def poll(self) -> Ends:
        return self.link.poll()[1:]


class LosesATicket(LinkAround):
    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        tickets = self.link.submit(copies, after, urgent=urgent)
        return tickets[:-1] or tickets


class ReadsFromTheStart(LinkAround):
    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        return self.link.submit(dataclasses.replace(copies, first=0), after, urgent=urgent)


class Telling(LinkAround):
    """Calls ``tell`` with each submission."""

    def __init__(self, link: Link, tell: Callable[[Copies], None]) -> None:
        super().__init__(link)
        self._tell = tell

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        tickets = self.link.submit(copies, after, urgent=urgent)
        self._tell(copies)
        return tickets


class FreesWhatIsSaved(MemoryManager):
    """The pages are another's while the copy reads them."""

    def __init__(self, *, link: Link, **parts: Any) -> None:
        super().__init__(link=Telling(link, self.copied), **parts)

    def copied(self, copies: Copies) -> None:
        if copies.direction == "out" and copies.source is None:
            self.device.free(copies.device_pages)
            self.device.allocate(copies.num_pages)


class FreesWhatIsLoaded(FreesWhatIsSaved):
    def copied(self, copies: Copies) -> None:
        if copies.direction == "in" and copies.source is None:
            self.host.free(copies.host_pages)
            self.host.allocate(copies.num_pages)


class FreesWhatIsSpilled(FreesWhatIsSaved):
    def copied(self, copies: Copies) -> None:
        if copies.direction == "down":
            self.host.free(copies.host_pages)
            self.host.allocate(copies.num_pages)


class FreesWhatIsStaged(FreesWhatIsSaved):
    def copied(self, copies: Copies) -> None:
        if copies.direction == "up":
            self.disk.free(copies.disk_pages)
            self.disk.allocate(copies.num_pages)


# -- pools ----------------------------------------------------------------------------------------


class KnowsNoFence(PagePool):
    def fence(self, pages: Sequence[int]) -> int:
        return -1


class CountsTwice(PagePool):
    def free(self, pages: Sequence[int], fence: int = -1) -> None:
        super().free(pages, fence)
        self.num_free += len(pages) > 2


class LeaksOnTheHost(PagePool):
    def free(self, pages: Sequence[int], fence: int = -1) -> None:
        if self.first:
            super().free(pages, fence)


# -- runners --------------------------------------------------------------------------------------


class RunnerAround:
    def __init__(self, runner: Runner) -> None:
        self.runner, self.steps_in_flight = runner, runner.steps_in_flight
        self.keys: dict[int, int] = {}

    def launch(self, batch: Batch) -> LaunchedStep:
        return self.runner.launch(batch)

    def collect(self, step: LaunchedStep) -> StepOutput:
        return self.runner.collect(step)


class HidesBadSteps(RunnerAround):
    def collect(self, step: LaunchedStep) -> StepOutput:
        output = super().collect(step)
        return dataclasses.replace(output, bad=np.zeros_like(output.bad))


class KeepsKeys(RunnerAround):
    """What a slot drew from first, it draws from for ever."""

    def launch(self, batch: Batch) -> LaunchedStep:
        slots, keys = batch.slots.tolist(), batch.sampling.keys.tolist()
        kept = [self.keys.setdefault(slot, key) for slot, key in zip(slots, keys, strict=True)]
        sampling = dataclasses.replace(batch.sampling, keys=np.array(kept, np.uint64))
        return super().launch(dataclasses.replace(batch, sampling=sampling))


# -- memory, as a request sees it -----------------------------------------------------------------


class BrokenAcquire(MemoryManager):
    """``before`` may change what is asked for, ``after`` what was given, or not (``None``)."""

    def acquire(
        self, agent: AgentId | None, tokens: bytes, num_blocks: int, **more: Any
    ) -> Lease | None:
        tokens, more = self.before(tokens, more)
        lease = super().acquire(agent, tokens, num_blocks, **more)
        self.after(tokens, lease)
        return lease

    def before(self, tokens: bytes, more: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        more["attachments"] = [self.use(use) for use in more.get("attachments", ())]
        return tokens, more

    def use(self, adapter: AttachmentSpec) -> AttachmentSpec:
        return adapter

    def after(self, tokens: bytes, lease: Lease | None) -> None:
        if lease is not None:
            self.given(lease, tokens)

    def given(self, lease: Lease, tokens: bytes) -> None:
        """``lease`` was given for ``tokens``."""

    def found(self, tokens: bytes) -> list[tuple[Segment, int]]:
        """What is there of ``tokens``."""
        root = self.tree.root(TEXT)
        return self.tree.match(root, tokens, len(tokens) // root.block_bytes)


class ForgetsThePin(BrokenAcquire):
    def given(self, lease: Lease, tokens: bytes) -> None:
        for segment in lineage(lease.end):
            segment.pins -= 1


class ForgetsTheAdaptersPin(BrokenAcquire):
    def given(self, lease: Lease, tokens: bytes) -> None:
        for attachment in lease.attachments:
            attachment.segment.pins -= 1


class PinsOnRefusal(BrokenAcquire):
    def after(self, tokens: bytes, lease: Lease | None) -> None:
        if lease is None:
            for segment, _ in self.found(tokens):
                segment.pins += 1


class LooksUpOnce(BrokenAcquire):
    """Where a prompt's first block lay when it was first asked for, it is taken to lie for ever."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.known: dict[bytes, int] = {}

    def given(self, lease: Lease, tokens: bytes) -> None:
        for segment in lineage(lease.end)[-1:]:
            key = tokens[: segment.block_bytes]
            page = self.known.setdefault(key, segment.device[0])
            self.table.write(lease.row, 0, [page])


class MatchesABlockMore(BrokenAcquire):
    """What the tree has behind the match is taken for the prompt's next block."""

    def before(self, tokens: bytes, more: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        size, path = self.tree.root(TEXT).block_bytes, self.found(tokens)
        start = size * sum(count for _, count in path)
        for segment, count in path[-1:]:
            behind = self.behind(segment, count)
            if start + len(behind) <= len(tokens):
                tokens = tokens[:start] + behind + tokens[start + len(behind) :]
        return tokens, more

    def behind(self, segment: Segment, count: int) -> bytes:
        size = segment.block_bytes
        return segment.tokens[count * size : (count + 1) * size]


class TakesAPartialBlockUnread(MatchesABlockMore):
    def behind(self, segment: Segment, count: int) -> bytes:
        whole = count == segment.num_blocks
        return next((part.tokens for part in segment.partials.values() if whole), b"")


class SkipsCopyOnWrite(BrokenAcquire):
    def given(self, lease: Lease, tokens: bytes) -> None:
        lease.copies = []


class WritesInPlace(BrokenAcquire):
    def given(self, lease: Lease, tokens: bytes) -> None:
        for shared, own in lease.copies:
            self.device.free([own])
            lease.private[0] = shared
            self.table.write(lease.row, lease.num_shared, [shared])
        lease.copies = []


class EvictsParentsFirst(BrokenAcquire):
    def before(self, tokens: bytes, more: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        for segment in self.tree:
            if segment.device and segment.children and not segment.pins:
                self.device.free(list(segment.device))
        return tokens, more


class ForgetsTheCopyOfAPart(BrokenAcquire):
    """A segment that is cut while it is loaded: the new part knows of no load."""

    def before(self, tokens: bytes, more: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        self.whole = set(self.tree)
        return tokens, more

    def after(self, tokens: bytes, lease: Lease | None) -> None:
        for segment in set(self.tree) - self.whole:
            if segment.device:
                segment.device.transfer = None


class OneBranch(AttachmentSpec):
    def branch(self, block_size: int) -> Branch:
        return super().branch(block_size)._replace(mark=bytes(18))


class OneKeyForAllAdapters(BrokenAcquire):
    def use(self, adapter: AttachmentSpec) -> AttachmentSpec:
        return OneBranch(*adapter)


class FilesUnderAnotherModel(BrokenAcquire):
    """What is computed on any model is kept as that of the first one that was asked for."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.first: Branch | None = None

    def given(self, lease: Lease, tokens: bytes) -> None:
        if any(segment.runs for _, segment, _ in lease.attachments):
            self.first = lease.branch = self.first or lease.branch


class CountsInItsOwnTokens(BrokenAcquire):
    """A page is taken to hold as many tokens of any model as of the engine's own."""

    def use(self, adapter: AttachmentSpec) -> AttachmentSpec:
        return adapter._replace(block_size=self.block_size)


class KnowsOnePlaceOfWeights(BrokenAcquire):
    """Where weights lay when they were first asked for, they are taken to lie for ever."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.heads: dict[Segment, list[int]] = {}

    def given(self, lease: Lease, tokens: bytes) -> None:
        for _, segment, row in lease.attachments:
            if segment.runs:
                heads = self.heads.setdefault(segment, segment.runs.heads(segment.device))
                self.table.write(row, 0, heads)


class KeyWithoutThePlace(BrokenAcquire):
    def use(self, adapter: AttachmentSpec) -> AttachmentSpec:
        return adapter._replace(start=adapter.start - adapter.start % self.block_size)


class ActivatedAsTheBase(BrokenAcquire):
    def use(self, adapter: AttachmentSpec) -> AttachmentSpec:
        return adapter._replace(start=1 << 22) if adapter.start else adapter


# -- memory, on a request's way -------------------------------------------------------------------


class GrowsOneColumnOff(MemoryManager):
    def grow(self, lease: Lease, num_blocks: int) -> bool:
        before = lease.num_blocks
        grown = super().grow(lease, num_blocks)
        if more := lease.num_blocks - before:
            self.table.write(lease.row, max(0, before - 1), lease.private[-more:])
        return grown


class CommitsAPart(MemoryManager):
    """Of a block."""

    def commit(self, lease: Lease, tokens: bytes, num_tokens: int) -> None:
        rounded = num_tokens + self.block_size - 1 if num_tokens else 0
        super().commit(lease, tokens, min(rounded, len(tokens) // 4))


class CommitsEarly(MemoryManager):
    """What is to be computed, whether or not it was."""

    def commit(self, lease: Lease, tokens: bytes, num_tokens: int) -> None:
        super().commit(lease, tokens, len(tokens) // 4)


class FreesTwice(MemoryManager):
    def release(self, lease: Lease, tokens: bytes = b"", num_tokens: int = 0) -> None:
        pages = lease.private[:1]
        super().release(lease, tokens, num_tokens)
        self.device.free(pages)


class KeepsTheRow(MemoryManager):
    def release(self, lease: Lease, tokens: bytes = b"", num_tokens: int = 0) -> None:
        super().release(lease, tokens, num_tokens)
        self.table.allocate()


class FreesTheAdaptersRow(MemoryManager):
    """With the first lease that goes."""

    def release(self, lease: Lease, tokens: bytes = b"", num_tokens: int = 0) -> None:
        super().release(lease, tokens, num_tokens)
        for attachment in lease.attachments:
            if attachment.segment.pins:
                self.table.free(attachment.row)


class HandsOutAnotherKindsPage(MemoryManager):
    """State of an agent's own and other state have each a host page of the other."""

    def poll(self) -> list[Lease]:
        held = {found.loss: found for found in self.tree if found.host and not found.is_moving}
        own = held.pop("fatal", None)
        for other in held.values():
            if own is not None:
                own.host[0], other.host[0] = other.host[0], own.host[0]
        return super().poll()


class HandsOutAPageOfWeights(MemoryManager):
    """Weights and other state have each a host page of the other."""

    def poll(self) -> list[Lease]:
        held = [found for found in self.tree if found.host and not found.is_moving]
        weights = next((found for found in held if found.runs), None)
        other = next((found for found in held if not found.runs), None)
        if weights is not None and other is not None:
            weights.host[0], other.host[0] = other.host[0], weights.host[0]
        return super().poll()


class MovesWhatIsRead(MemoryManager):
    """Compaction that looks at no pin."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        vars(self.residency.compaction)["movable"] = self.movable

    def movable(self, held: Collection[Segment]) -> dict[int, tuple[Segment, int]]:
        return {
            page: (segment, block)
            for segment in self.tree
            if not (segment.is_moving or segment.runs)
            for block, page in enumerate(segment.device)
        }


class MovesTooLate(MemoryManager):
    """Compaction that copies a page when others may have written there."""

    def __init__(self, **parts: Any) -> None:
        self.later: list[tuple[Sequence[int], Sequence[int]]] = []
        self.move = parts["move_pages"]
        super().__init__(**{**parts, "move_pages": self.note})

    def note(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self.later.append((sources, targets))

    def poll(self) -> list[Lease]:
        for sources, targets in self.later:
            self.move(sources, targets)
        self.later.clear()
        return super().poll()


class WritesSharedState(MemoryManager):
    """In place, whoever else owns the pages."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        vars(self.blobs)["may_write"] = self.may_write

    def may_write(self, blob: Blob) -> bool:
        return blob.source is None and not blob.segment.is_moving


class WritesStateUnderACopy(WritesSharedState):
    def may_write(self, blob: Blob) -> bool:
        return blob.source is None and len(blob.segment.owners) == 1


class DropsWhatIsKept(MemoryManager):
    """The only copy of an agent's own state, for whoever needs the room."""

    def poll(self) -> list[Lease]:
        for segment in self.tree:
            if segment.loss == "fatal" and segment.is_ready and not segment.is_moving:
                self.host.free(self.tiers.host.cut(segment, 0))
        return super().poll()


class RemovesWhatOthersHave(MemoryManager):
    """The content of a value, with the first agent that goes."""

    def forget(self, agent: AgentId) -> None:
        for blob in self.blobs.of(agent).values():
            for owner in list(blob.segment.owners) if blob.source is not None else []:
                self.owners.detach(owner, blob.segment)
        super().forget(agent)


class WakesNobody(MemoryManager):
    def poll(self) -> list[Lease]:
        return [lease for lease in super().poll() if not lease.num_host_blocks]


class WakesTheCancelled(MemoryManager):
    def poll(self) -> list[Lease]:
        leases = super().poll()
        for lease in leases:
            if lease.failed is not None and lease.failed.error is None:
                lease.failed = None
        return leases


class RemovesWhatIsInUse(MemoryManager):
    """An adapter's pages."""

    def poll(self) -> list[Lease]:
        for segment in self.tree:
            if segment.is_attachment and segment.source is None and segment.pins:
                self.device.free(list(segment.device))
        return super().poll()


# -- schedulers -----------------------------------------------------------------------------------


class LosesATokenByPreemption(Scheduler):
    """The last of its prompt: one of its answer would be computed again, and be the same."""

    def schedule(self) -> Batch | None:
        counts = {request: request.num_preemptions for request in self.slots.sequences.values()}
        batch = super().schedule()
        for request, count in counts.items():
            if request.num_preemptions > count and request.phase is Phase.WAITING:
                request.tokens = self.mangled(request)
        return batch

    def mangled(self, request: Request) -> Any:
        return np.delete(request.tokens, request.prompt_len - 1)


class DoublesATokenByPreemption(LosesATokenByPreemption):
    def mangled(self, request: Request) -> Any:
        return np.append(request.tokens, request.tokens[-1:])


class TakesALateToken(Scheduler):
    """A slot's new sequence is given what a step in flight computed for the one before."""

    def end(self, sequence: Request, reason: FinishReason, error: Exception | None) -> None:
        entered = sequence.lease is not None
        super().end(sequence, reason, error)
        if entered:
            self.slots.epoch[sequence.slot] -= 1


class EndsOnlyWhatWaits(Scheduler):
    def end(self, sequence: Request, reason: FinishReason, error: Exception | None) -> None:
        if sequence.lease is None:
            super().end(sequence, reason, error)


class Blind:
    """Never says stop."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def push(self, token_id: int) -> bool:
        self.observer.push(token_id)
        return False


class OverlooksStops(Scheduler):
    def add(self, sequence: Request) -> None:
        if sequence.observer is not None:
            sequence.observer = Blind(sequence.observer)
        super().add(sequence)


# -- advice ---------------------------------------------------------------------------------------


class SaysAnything(Source):
    """Of whoever called."""

    def __init__(self) -> None:
        super().__init__("anything")
        self.agents: dict[AgentId, None] = {}
        self.rng = random.Random(0)

    def called(self, agent: AgentId, now: float) -> None:
        self.agents[agent] = None

    def changes(self, now: float) -> Estimates:
        times = (float("nan"), float("inf"), -1e18, 0.0, 1e18)
        return Estimates([*self.agents], [self.rng.choice(times) for _ in self.agents])


# -- snapshots ------------------------------------------------------------------------------------


class BelievesEverySlot(ArraySlots):
    """What is in a slot now is taken for what was in it when it was looked at."""

    def copy(self, slots: Sequence[int], checksums: Sequence[int]) -> tuple[Bytes2D, list[bool]]:
        rows, _ = super().copy(slots, checksums)
        return rows, [True] * len(slots)


class LooksOnce(LiveBlocks):
    """Pages are copied from where they were at the look, whoever has them by then."""

    def __init__(self, memory: MemoryManager, segments: list[Segment]) -> None:
        super().__init__(memory, segments)
        self.seen = [
            [*(("device", page) for page in found.device[: found.device.valid]),
             *(("host", page) for page in found.host[found.device.valid : found.host.valid])]
            for found in segments
        ]  # fmt: skip

    def copy(
        self,
        ranges: Sequence[BlockRange],
        access: PageAccess,
        store: SlotStore | None,
    ) -> CopiedBlocks:
        rows = []
        for index, first, count in ranges:
            places: Any = self.seen[index][first : first + count]
            found = [access.read(place, [page]) for place, page in places]
            rows.append(np.concatenate(found) if found else np.empty((0, 0), np.uint8))
        return CopiedBlocks(None, rows, [], [])


def looks_once(
    memory: MemoryManager, is_wanted: Callable[[AgentId], bool]
) -> tuple[MemoryImage, LiveBlocks]:
    image, _ = image_of(memory, is_wanted)
    segments = [segment for segment in memory.tree if not segment.is_attachment]
    assert len(segments) == len(image.segments), "no root of others has text"
    return image, LooksOnce(memory, segments)
