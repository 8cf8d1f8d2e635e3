"""The host tier: chunks in host memory, and which of them leave. What a vLLM ``CachePolicy`` does,
without vLLM.

Alone, the tier learns of agents from the requests that store and load. With a board of the
connector's, it takes the board's word, and knows what the device holds: a chunk that the device has
as well is a spare copy, and leaves before any that only the host has.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Protocol

from scalesim.core import AgentId
from scalesim.order.board import CallBoard
from scalesim.order.leaving import LeavingOrder
from scalesim.order.owners import Key
from scalesim.order.request_hints import HintReader


class HostChunk(Protocol):
    """vLLM's ``ChunkStatus``: ``ref_cnt`` counts the copies under way from the chunk, -1 while the
    chunk is written."""

    ref_cnt: int


class RequestContext(Protocol):
    """vLLM's ``ReqContext``: what the host tier is told of a request."""

    req_id: str
    kv_transfer_params: dict[str, Any] | None

    def get_offload_key_position(self, key: Any) -> int | None:
        """The position behind the key's last token in the prompt."""


class HostTier:
    """Chunks by key. A chunk may leave while nothing reads or writes it; first leaves what is used
    last. A store that would displace only what is used sooner is refused: it would do harm.
    """

    def __init__(self, cache_capacity: int) -> None:
        self.cache_capacity = cache_capacity
        self.chunks: dict[Key, Any] = {}
        self.num_evicted = self.num_refused = 0
        self._hints = HintReader()
        self._on_device: Callable[[], Container[Key]] | None = None
        self._set_aside: list[Key] = []  # leave for what is stored next
        self._storing: str | None = None  # the call that the next stores are for
        self._use(CallBoard())

    def join(self, board: CallBoard, on_device: Callable[[], Container[Key]]) -> None:
        """Go by ``board`` from now on, and by the keys ``on_device()``. Only while the tier is
        empty."""
        assert not self.chunks, f"the host tier has {len(self.chunks)} chunks already"
        self._on_device = on_device
        self._use(board)

    def _use(self, board: CallBoard) -> None:
        self.board = board
        self._alone = LeavingOrder(board.keys)
        self._spare = LeavingOrder(board.keys, soonest=True)  # on the device as well
        self._released: dict[Key, None] = {}  # belong into one of the two, and are in neither
        board.keys.watch(lambda: self.chunks)

    @property
    def num_free(self) -> int:
        """Chunks that hold nothing."""
        return self.cache_capacity - len(self.chunks)

    # -- what is told from outside ---------------------------------------------------------------

    def expect(
        self,
        times: Mapping[AgentId, float],
        *,
        absolute: bool,
        confidence: float | Mapping[AgentId, float] = 1.0,
    ) -> None:
        """Agents call next at these times, or in so many ticks."""
        self.board.expect(times, confidence, absolute=absolute)

    def tick(self, n: float, to: float | None) -> None:
        """Move the clock."""
        self.board.tick(n, to=to)

    def forget(self, agents: Sequence[AgentId]) -> int:
        """These agents will not call again. Returns how many of them there were."""
        return self.board.forget(agents)

    def stats(self) -> dict[str, float]:
        """What the tier holds and has done, the clock, and how much the board knows."""
        board = self.board
        return {
            "now": board.clock.now,
            "agents": board.num_agents,
            "keys": len(board.keys),
            "host_chunks": len(self.chunks),
            "host_evicted": self.num_evicted,
            "host_refused": self.num_refused,
            "malformed_hints": self._hints.num_malformed,
        }

    # -- chunks ----------------------------------------------------------------------------------

    def get(self, key: Key) -> Any:
        """The chunk of ``key``; ``None`` if there is none."""
        return self.chunks.get(key)

    def insert(self, key: Key, chunk: HostChunk) -> None:
        """Add a chunk that is about to be written, or was."""
        self.chunks[key] = chunk
        if chunk.ref_cnt == 0:
            self.mark_evictable(key)

    def remove(self, key: Key) -> None:
        """Remove a chunk that could not be written, or was evicted."""
        del self.chunks[key]
        self.mark_non_evictable(key)
        self.board.keys.left((key,))

    def clear(self) -> None:
        """Remove all chunks."""
        keys = list(self.chunks)
        self.chunks.clear()
        self._released.clear()
        self._alone.clear()
        self._spare.clear()
        self.board.keys.left(keys)

    def mark_evictable(self, key: Key) -> None:
        """Nothing reads or writes the chunk of ``key`` any more."""
        self._released[key] = None

    def mark_non_evictable(self, key: Key) -> None:
        """The chunk of ``key`` is read, or written."""
        self._released.pop(key, None)
        self._alone.discard(key)
        self._spare.discard(key)

    def _sort_released(self) -> None:
        """Put what was released since the last time where it belongs."""
        spare: list[Key] = []
        alone: list[Key] = []
        on_device = () if self._on_device is None else self._on_device()
        for key in self._released:
            (spare if key in on_device else alone).append(key)
        self._released.clear()
        self._spare.add_all(spare)
        self._alone.add_all(alone)

    def device_changed(self, keys: Sequence[Key]) -> None:
        """The device has copies of ``keys`` now, or none any more."""
        for key in keys:
            if self._alone.discard(key) or self._spare.discard(key):
                self._released[key] = None

    # -- what leaves -----------------------------------------------------------------------------

    def admitted(self, keys: list[Any], req_context: RequestContext) -> list[Any]:
        """Of ``keys``, which a request offers in the order of its prompt, those that are worth
        storing: all that are here, and from the beginning as many others as find room.

        Where the device's evictions are saved as well, room is what is free: what is on the device
        needs no second copy yet. Else it includes what leaves before the request's next use.
        """
        self._learn(keys, req_context)
        num_new = sum(key not in self.chunks for key in keys)
        room = self.num_free + len(self._set_aside)
        if num_new > room and self._on_device is None:
            room += self._num_displaced(req_context.req_id, keys, num_new - room)
        if num_new <= room:
            return keys
        self.num_refused += num_new - room
        chosen = []
        for key in keys:
            is_new = key not in self.chunks
            if not is_new or room > 0:
                chosen.append(key)
            room -= is_new
        return chosen

    def make_room(self, keys: Sequence[Key]) -> list[Key]:
        """Of ``keys``, which stand in the order of their next use, the first ones that find room:
        what is free, spare copies, and what leaves before them. What leaves for them is set aside
        for ``evict``, until ``put_back``."""
        self._sort_released()
        num_free = min(len(keys), max(0, self.num_free))
        rest = keys[num_free:]
        victims = self._spare.take(len(rest))
        victims += self._take_before(rest[len(victims) :])
        self._set_aside += victims
        self.num_refused += len(rest) - len(victims)
        return list(keys[: num_free + len(victims)])

    def _take_before(self, keys: Sequence[Key]) -> list[Key]:
        """Take of the chunks that only the host has, the first ones, each of which leaves before
        its counterpart in ``keys``."""
        first, leaves_before = self._alone.peek(), self.board.keys.leaves_before
        if not keys or first is None or not leaves_before(first, keys[0]):
            return []
        victims = self._alone.take(len(keys))
        # these are used ever sooner, and ``keys`` ever later
        count = bisect_left(
            range(len(victims)), True, key=lambda at: not leaves_before(victims[at], keys[at])
        )
        self._alone.add_all(victims[count:])
        return victims[:count]

    def put_back(self) -> None:
        """What was set aside and has not left stays."""
        for key in self._set_aside:
            self.mark_evictable(key)
        self._set_aside.clear()

    def _num_displaced(self, call: str, keys: Sequence[Key], limit: int) -> int:
        """How many chunks, up to ``limit``, leave before what ``call`` has computed."""
        self._sort_released()
        use, now = self.board.use_behind(call), self.board.clock.now
        victims = self._alone.take(limit, set(keys))
        uses = [self.board.keys.next_use(key) for key in victims]
        self._alone.add_all(victims)
        return sum(other is not None and use.sooner_than(other, now) for other in uses)

    def evict(self, n: int, protected: set[Any]) -> list[tuple[Any, Any]] | None:
        """Remove ``n`` chunks without those of ``protected``, and return them with their keys, to
        make room for what ``protected`` has that is not here yet. ``None``, and no change, if there
        are no ``n`` that leave before that."""
        if self._set_aside:
            victims = self._set_aside[:n]
            del self._set_aside[:n]
        else:
            self._sort_released()
            victims = self._spare.take(n, protected)
            num_spare = len(victims)
            victims += self._alone.take(n - num_spare, protected)
            if len(victims) < n or not self._may_displace(victims[num_spare:], protected):
                for key in victims:
                    self.mark_evictable(key)
                self.num_refused += 1
                return None
        self.num_evicted += n
        evicted = [(key, self.chunks.pop(key)) for key in victims]
        self.board.keys.left(victims)
        return evicted

    def _may_displace(self, victims: Sequence[Key], incoming: set[Any]) -> bool:
        """Whether the last of ``victims``, which stand in their order, leaves before what is new in
        ``incoming``."""
        board = self.board
        if not victims:
            return True
        if self._storing is not None:  # what a call has computed: needed again when it is over
            use = board.keys.next_use(victims[-1])
            assert use is not None, victims[-1]
            return board.use_behind(self._storing).sooner_than(use, board.clock.now)
        news = [key for key in incoming if key not in self.chunks]
        return all(board.keys.leaves_before(victims[-1], key) for key in news)

    # -- what requests do: the tier's only news if it stands alone --------------------------------

    def touch(self, keys: Iterable[Key], req_context: RequestContext) -> None:
        """The request uses ``keys``."""
        self._learn(list(keys), req_context)

    def on_store_miss(self, keys: Iterable[Key], req_context: RequestContext) -> None:
        """The request is about to store ``keys``."""
        self._learn(list(keys), req_context)
        alone = self._on_device is None
        self._storing = req_context.req_id if alone else None

    def on_request_finished(
        self,
        key_groups: Sequence[Sequence[Key]],
        insertion_only_keys: set[Any],
        reused_keys: set[Any],
        req_context: RequestContext,
    ) -> None:
        """The request is over; it used ``key_groups``, each in the order of the prompt."""
        for keys in key_groups:
            self._learn(keys, req_context)
        if self._on_device is None:
            self._storing = None
            self.board.end(req_context.req_id)

    def _learn(self, keys: Sequence[Key], context: RequestContext) -> None:
        if self._on_device is not None:
            return  # the connector was told before
        self._hints.hint(context.kv_transfer_params).tell(self.board, context.req_id)
        depths = [context.get_offload_key_position(key) or 0 for key in keys]
        self.board.used(context.req_id, keys, depths)
