"""The roof: an upper bound of calls per second on a machine, for any policy and any order.

A tick's calls all end before the next tick begins. The bound sums, over the ticks of the
simulation, the least time that the hardware model allows:

- arithmetic: each prefix is computed once in a run, however many calls share it and whatever was
  evicted; each call computes at least one token of its prompt, and each token of its answer but the
  last;
- reading: each token of an answer reads its whole context once. The weights are read once in each
  step of the engine, and ideal batching takes the fewest steps that the longest chain of an agent's
  calls, the slots and the token budget allow. Several models are computed in turn, so that the sums
  are taken for each model alone;
- the link: of the state that a tick reads and an earlier tick computed, at most a pool's content is
  present when the tick begins; the remainder is loaded or recomputed, in the faster split;
- the disk, where there is one: of that state, at most what device and host hold is there when the
  tick begins; the remainder is read or recomputed, in the faster split.

- weights in pages: those of the models that a tick's calls use are part of what the tick needs, and
  cannot be computed. Over the whole run, the link brings at least what a pool for weights alone
  lacks, if those that are used last leave (Belady 1966).

Reading, arithmetic, the link and the disk run concurrently. The bound shares no code with the
scheduler, the planner or the memory: it depends on the trace, the model and the hardware alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from scalesim.core import AgentId, Int32s
from scalesim.replay.content import VOCAB_SIZE, tokens_of
from scalesim.replay.hardware import StepWork
from scalesim.replay.machine import Machine
from scalesim.trace.trace import TraceCall, TraceTick, common_length


@dataclass(frozen=True, slots=True)
class Roof:
    """The least seconds for ``turns`` calls: with a pool for all state, and with the machine's
    pool."""

    turns: int
    resident_s: float
    pool_s: float

    @property
    def resident_turns_per_s(self) -> float:
        return self.turns / self.resident_s if self.turns else 0.0

    @property
    def turns_per_s(self) -> float:
        return self.turns / self.pool_s if self.turns else 0.0


def roof(machine: Machine, ticks: Iterable[TraceTick], warmup: int = 0) -> Roof:
    """The roof over the ticks after the first ``warmup``; over all ticks if there are no more."""
    floors, found, used = _Floors(machine), [], []
    for tick in ticks:
        found.append((len(tick.calls), *floors.tick(tick.calls)))
        used.append(set(_by_model(machine, tick.calls)))
    counted = found[warmup:] or found
    turns, resident_s, pool_s = (sum(column) for column in zip(*counted, strict=True))
    if machine.models is not None:
        page_bytes = machine.geometry.page_bytes
        sizes = {n: machine.models.num_pages(n, page_bytes) for n in machine.models.all}
        pages = least_weight_loads(used[warmup:] or used, sizes, machine.device_pages)
        pool_s = max(pool_s, pages * page_bytes / machine.link_bytes_per_s)
    return Roof(int(turns), float(resident_s), float(pool_s))


def least_weight_loads(used: Sequence[set[int]], sizes: dict[int, int], capacity: int) -> int:
    """The fewest pages of weights that come to the device while one set of models after another is
    ``used``. Model ``number`` has ``sizes[number]`` pages. Of ``capacity`` pages those stay that
    are used soonest, also before the first set; while a model is used, beside its own."""
    later: list[dict[int, int]] = [{}]  # of each set and the ones behind: a model's next use
    for index, numbers in reversed([*enumerate(used)]):
        later.append({**later[-1], **dict.fromkeys(numbers, index)})
    later.reverse()
    there, loads = dict(sizes), 0
    for numbers, ahead in zip([set(), *used], later, strict=True):
        for number in numbers:
            loads += sizes[number] - there[number]
            there[number] = sizes[number]
        soonest = sorted(there, key=lambda number: ahead.get(number, len(used)))
        pinned = max((sizes[number] for number in numbers), default=0)
        _trim(there, [number for number in soonest if number not in numbers], capacity - pinned)
        _trim(there, soonest, capacity)
    return loads


def _trim(there: dict[int, int], order: Iterable[int], room: int) -> None:
    """Keep ``room`` pages of the models in ``order``: of the first ones."""
    for number in order:
        there[number] = min(there[number], room)
        room -= there[number]


def _by_model(machine: Machine, calls: Iterable[TraceCall]) -> dict[int, list[TraceCall]]:
    """The calls of each model, by its number."""
    models, found = machine.models, defaultdict(list)
    for call in calls:
        found[0 if models is None else models.numbers[call.agent]].append(call)
    return found


class _Floors:
    """The least seconds of each tick, tick by tick."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self._costs = machine, machine.costs
        numbers = range(len(self._costs))
        self._computed = [Computed(machine.block_size_of(number)) for number in numbers]

    def tick(self, calls: list[TraceCall]) -> tuple[float, float]:
        """The tick's least seconds: (with a pool for all state, with the machine's pool)."""
        machine = self._machine
        if not calls:
            return 0.0, 0.0
        for computed in self._computed:
            computed.begin_tick()
        least_s = compute_s = 0.0
        weights = 0
        for number, own in _by_model(machine, calls).items():
            floor_s, busy_s = self._of_model(number, own)
            least_s, compute_s = least_s + floor_s, compute_s + busy_s
            if machine.models is not None:
                weights += machine.models.num_pages(number, machine.geometry.page_bytes)
        read = sum(computed.pages_read for computed in self._computed)
        missing = max(0, read + weights - machine.device_pages)
        pool_s = max(least_s, self._brought_s(missing, read, compute_s, machine.link_bytes_per_s))
        if machine.disk_pages:
            far = max(0, read - machine.device_pages - machine.host_pages)
            pool_s = max(pool_s, self._brought_s(far, read, compute_s, machine.disk_bytes_per_s))
        return least_s, pool_s

    def _of_model(self, number: int, calls: list[TraceCall]) -> tuple[float, float]:
        """The least seconds of calls of model ``number``, and those of them that are not
        reading."""
        machine, cost, computed = self._machine, self._costs[number], self._computed[number]
        tokens = pairs = context = 0
        for call in calls:
            prompt, output = call.prompt_len, call.output.length
            new, twice = computed.add(computed_tokens(call), prompt)
            for first, last, sign in ((new, prompt + output - 1, 1), (*twice, -1)):
                count, seen = _attended(first, last, machine.first_tokens)
                tokens, pairs = tokens + sign * count, pairs + sign * seen
            context += output * prompt + output * (output - 1) // 2
        answers = sum(call.output.length for call in calls)
        tokens = max(tokens, answers)
        steps = max(
            _longest_chain(calls),
            -(-answers // machine.max_num_seqs),
            -(-tokens // machine.max_num_batched_tokens),
        )
        compute_s = cost.compute_s(cost.flops(StepWork(tokens, 0, max(pairs, 0))))
        read_s = cost.read_s(steps * cost.read_bytes(StepWork(0, 0, 0)) + cost.kv_bytes(context))
        overhead_s = steps * cost.hardware.step_overhead_s
        return overhead_s + max(compute_s, read_s), overhead_s + compute_s

    def _brought_s(self, missing: int, state: int, compute_s: float, rate: float) -> float:
        """The least seconds for bringing ``missing`` pages at ``rate`` bytes a second, or
        recomputing up to ``state`` of them, concurrently with other arithmetic that takes
        ``compute_s``."""
        machine = self._machine
        again_s = min(
            cost.compute_s(cost.flops(StepWork(machine.block_size_of(number), 0, 0)))
            for number, cost in enumerate(self._costs)
        )
        load_s = machine.geometry.page_bytes / rate
        computed = (missing * load_s - compute_s) / (load_s + again_s)  # both then take as long
        return (missing - min(computed, state)) * load_s if computed > 0 else 0.0


def computed_tokens(call: TraceCall) -> Int32s:
    """The tokens whose KV a call needs or computes: all but the last token of its answer."""
    return tokens_of((*call.prompt, call.output), VOCAB_SIZE)[:-1]


def _attended(first: int, last: int, adapter: int) -> tuple[int, int]:
    """The number of tokens at ``first … last``, and of (query, context) pairs of their attention.
    The first ``adapter`` positions hold an adapter's pages and do not count."""
    first, last = max(first, adapter) - adapter, max(last, adapter) - adapter
    if last <= first:
        return 0, 0
    return last - first, (last * (last + 1) - first * (first + 1)) // 2


def _longest_chain(calls: Iterable[TraceCall]) -> int:
    """The most steps of the engine that one agent's calls take in sequence: rounds wait for each
    other, and each token of an answer for the token before."""
    by_agent: dict[AgentId | None, list[TraceCall]] = defaultdict(list)
    for call in calls:
        by_agent[call.agent].append(call)
    return max(
        sum(
            max(call.output.length for call in together)
            for _, together in groupby(own, key=lambda call: call.round)
        )
        for own in by_agent.values()
    )


class _Edge:
    """An edge of the radix tree. ``born`` is the tick that first had its tokens; prompts of tick
    ``read_in`` have read its first ``read_to`` tokens."""

    __slots__ = ("born", "children", "read_in", "read_to", "tokens")

    def __init__(self, tokens: Int32s, born: int) -> None:
        self.tokens, self.born = tokens, born
        self.children: dict[int, _Edge] = {}
        self.read_in, self.read_to = -1, 0

    def split(self, length: int) -> None:
        """Split behind the first ``length`` tokens; the others become a child."""
        lower = _Edge(self.tokens[length:], self.born)
        lower.children, lower.read_in = self.children, self.read_in
        lower.read_to = max(0, self.read_to - length)
        self.tokens, self.children = self.tokens[:length], {int(lower.tokens[0]): lower}
        self.read_to = min(self.read_to, length)


class Computed:
    """All tokens computed so far, as a radix tree. ``pages_read`` counts the whole pages of earlier
    ticks that this tick's prompts read, each once."""

    def __init__(self, block_size: int) -> None:
        self._block_size, self._tick = block_size, -1
        self._root = _Edge(np.empty(0, np.int32), -1)
        self.pages_read = 0

    def begin_tick(self) -> None:
        self._tick += 1
        self.pages_read = 0

    def add(self, tokens: Int32s, prompt_len: int) -> tuple[int, tuple[int, int]]:
        """Add the ``tokens`` of a call, of which the first ``prompt_len`` are its prompt. Returns
        the position from which on the call must compute (at most its prompt's last token); and the
        range behind it that another call of the tick has counted already, because the later one of
        the two calls may reuse it."""
        whole = (prompt_len - 1) // self._block_size * self._block_size
        node, depth, twice = self._root, 0, 0
        while depth < len(tokens):
            edge = node.children.get(int(tokens[depth]))
            if edge is None:
                break
            count = common_length(edge.tokens, tokens[depth:])
            if edge.born < self._tick:
                self._read(edge, depth, min(count, whole - depth))
            elif depth + count >= prompt_len:
                twice += depth + count - max(depth, prompt_len - 1)
            node, depth = edge, depth + count
            if count < len(edge.tokens):
                if depth < len(tokens):
                    edge.split(count)
                break
        if depth < len(tokens):
            node.children[int(tokens[depth])] = _Edge(tokens[depth:].copy(), self._tick)
        return min(depth, prompt_len - 1), (depth - twice, depth)

    def _read(self, edge: _Edge, start: int, count: int) -> None:
        """Count the pages that end in the first ``count`` tokens of ``edge``, which begins at
        position ``start``, unless this tick has read them already."""
        if edge.read_in != self._tick:
            edge.read_in, edge.read_to = self._tick, 0
        if count > edge.read_to:
            before = (start + edge.read_to) // self._block_size
            self.pages_read += (start + count) // self._block_size - before
            edge.read_to = count
