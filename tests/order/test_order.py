"""What leaves a tier first, against a model that looks at every agent, and against Belady's
choice."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.memory.tree.owner import MANY_OWNERS
from scalesim.order.board import CallBoard
from scalesim.order.leaving import LeavingOrder
from scalesim.order.owners import Key
from tests.order.boards import board_where_prompts_go_on

NUM_AGENTS = 6
DEPTH = 3


class Tier:
    """A tier on a board: what it holds is in the order of leaving. ``new``: no prompt was seen to
    go on before."""

    def __init__(self, *, new: bool = False) -> None:
        self.board = CallBoard() if new else board_where_prompts_go_on()
        self.order = LeavingOrder(self.board.keys)
        self.board.keys.watch(lambda: self.order)
        self._calls = 0

    def call(self, agent: int | None, keys: Sequence[Key], *, soon: float | None = None) -> None:
        """A call from beginning to end; ``soon``: when the agent calls next."""
        name = f"call {self._calls}"
        self._calls += 1
        self.board.begin(name, agent)
        self.board.used(name, keys)
        for key in keys:
            self.order.add(key)
        if soon is not None and agent is not None:
            self.board.expect({agent: soon})
        self.board.end(name)

    def drop(self) -> Key:
        key = self.order.pop()
        assert key is not None
        self.board.keys.left([key])
        return key

    def drain(self) -> list[Key]:
        return [self.drop() for _ in range(len(self.order))]


def own(agent: int) -> list[Key]:
    return [(agent, depth) for depth in range(DEPTH)]


@dataclass
class Naive:
    """The next use and the last use of an agent, with the numbers of the events that told them, and
    when a next use is given up."""

    told: dict[int, tuple[float, int, float]] = field(default_factory=dict)
    used: dict[int, tuple[float, int]] = field(default_factory=dict)

    def first(self, agents: set[int], now: float) -> int:
        """The agent whose keys leave first: used last; an unknown next use is as far ahead as the
        last use is behind; of equals the unknown one, the one told last, the one used least
        recently."""

        def place(agent: int) -> tuple[float, bool, int]:
            if agent in self.told:
                time, seq, _ = self.told[agent]
                return time - now, False, seq
            time, seq = self.used[agent]
            return now - time, True, -seq

        return max(agents, key=place)

    def call(self, agent: int, now: float, seq: int) -> None:
        self.used[agent] = now, seq
        if agent in self.told:
            time, _, given_up = self.told[agent]
            if time < math.floor(now) + 1.0:
                del self.told[agent]  # it has come true
            else:
                self.told[agent] = time, seq, given_up  # each call tells it anew

    def expect(self, agent: int, time: float, now: float, seq: int) -> None:
        before = self.told.get(agent)
        if before is not None and before[0] == time:
            seq = before[1]
        self.told[agent] = time, seq, time + max(2.0, time - now)

    def give_up(self, now: float) -> None:
        self.told = {agent: told for agent, told in self.told.items() if told[2] >= now}


@pytest.mark.parametrize("seed", range(10))
def test_the_order_is_that_of_a_model(seed: int) -> None:
    rng, tier, naive = random.Random(seed), Tier(), Naive()
    board, held = tier.board, dict[int, int]()  # blocks by agent
    for seq in range(300):
        act = rng.choice(["call", "call", "expect", "expect", "tick", "drop", "drop"])
        agent, now = rng.randrange(NUM_AGENTS), board.clock.now
        time = rng.choice([0.5, 1.0, 2.0, 3.0, 3.0, 7.0, 40.0])
        if act == "call" and naive.used.get(agent, (-1.0, 0))[0] < math.floor(now):
            tier.call(agent, own(agent))  # once a tick: more would be a burst
            held[agent] = DEPTH
            naive.call(agent, now, seq)
        elif act == "expect":
            board.expect({agent: time}, absolute=False)
            naive.expect(agent, now + time, now, seq)
        elif act == "tick":
            board.tick(time / 2)
            naive.give_up(board.clock.now)
        elif act == "drop" and held:
            first = naive.first(set(held), now)
            held[first] -= 1
            assert tier.drop() == (first, held[first])  # from the end of the prompt
            if not held[first]:
                del held[first]
        assert len(tier.order) == sum(held.values()) == len(board.keys)


@pytest.mark.parametrize("seed", range(10))
def test_how_many_leave_before_a_key(seed: int) -> None:
    """As taking them one by one says, of keys that are in the order and of others; asking changes
    nothing."""
    rng, tier = random.Random(seed), Tier()
    keys, others = tier.board.keys, list[Key]()
    for now in range(40):
        tier.board.tick(to=float(now))
        agent = rng.randrange(NUM_AGENTS)
        soon = now + rng.randrange(1, 20) if rng.random() < 0.7 else None
        tier.call(agent, [*own(agent)[: rng.randrange(1, DEPTH + 1)], (agent, now)], soon=soon)
        others = [key for key in others if key not in tier.order]
        if rng.random() < 0.3 and (key := tier.order.peek()) is not None:
            tier.order.discard(key)  # it is elsewhere
            others.append(key)
        asked = rng.choice([*others, *own(agent)[:1]])
        limit = rng.randrange(2 * len(tier.order) + 1)
        counted = tier.order.num_before(asked, limit)
        taken = tier.order.take(len(tier.order))
        for key in taken:
            tier.order.add(key)
        before = 0
        while before < len(taken) and keys.leaves_before(taken[before], asked):
            before += 1
        assert counted == min(limit, before)
        assert tier.order.take(len(taken)) == taken
        for key in taken:
            tier.order.add(key)


def belady(calls: Sequence[int], capacity: int) -> list[int]:
    """The blocks that each call finds if those leave that are used last: by looking ahead."""
    cache: set[tuple[int, int]] = set()
    found = []
    for index, agent in enumerate(calls):
        needed = {(agent, depth) for depth in range(DEPTH)}
        found.append(len(needed & cache))
        ahead = list(calls[index + 1 :])
        cache |= needed
        while len(cache) > capacity:
            cache.remove(
                max(
                    cache,
                    key=lambda key: (
                        ahead.index(key[0]) if key[0] in ahead else math.inf, key[1], key[0]
                    ),
                )
            )  # fmt: skip
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["cycle", "permutations", "any"])
def test_true_hints_give_what_belady_gives(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    num_agents, capacity = 12, 5 * DEPTH + 1
    rounds = [list(range(num_agents)) for _ in range(6)]
    for each in rounds if kind == "permutations" else ():
        rng.shuffle(each)
    calls = [agent for each in rounds for agent in each]
    if kind == "any":
        calls = [rng.randrange(num_agents) for _ in calls]
    tier, found = Tier(), []
    for index, agent in enumerate(calls):
        found.append(sum(key in tier.order for key in own(agent)))
        tier.board.tick(to=index)
        later = calls[index + 1 :]
        tier.call(agent, own(agent), soon=index + 1 + later.index(agent) if agent in later else 1e9)
        while len(tier.order) > capacity:
            tier.drop()
    assert sum(found) == sum(belady(calls, capacity))
    assert sum(found) > 0


def test_a_shared_prefix_leaves_with_the_soonest_of_its_owners() -> None:
    tier = Tier()
    for agent, soon in ((0, 10.0), (1, 20.0), (2, 30.0)):
        tier.call(agent, ["system", *own(agent)], soon=soon)
    assert [key for key in tier.drain() if key == "system" or key[1] == 0] == [  # type: ignore[index]
        (2, 0), (1, 0), (0, 0), "system",
    ]  # fmt: skip
    assert len(tier.board.keys) == 0


def test_what_very_many_share_goes_by_its_last_use() -> None:
    tier = Tier()
    for agent in range(MANY_OWNERS + 2):
        tier.call(agent, ["system", (agent, 0)], soon=100.0 - agent)
    use = tier.board.keys.next_use("system")
    assert use is not None and use.time is None
    assert tier.drain()[-1] == "system"


def test_keys_of_nobody_leave_by_their_last_use() -> None:
    tier = Tier()
    for name in "abc":
        tier.call(None, [f"{name}{depth}" for depth in range(2)])
        tier.board.tick()
    tier.call(None, ["a0"])
    assert tier.drain() == ["a1", "b1", "b0", "c1", "c0", "a0"]


def test_what_changes_with_each_call_leaves_first() -> None:
    tier = Tier()
    for turn in range(4):
        tier.call(0, ["persona", f"memory {turn}"], soon=1.0)
        tier.call(1, own(1), soon=50.0)
    assert [tier.drop() for _ in range(4)] == [f"memory {turn}" for turn in range(4)]
    assert tier.drop() == (1, DEPTH - 1)  # who calls last
    assert tier.drain()[-1] == "persona"


def test_the_end_of_a_first_prompt_is_doubted_until_prompts_are_seen_to_go_on() -> None:
    tier = Tier(new=True)
    tier.call(0, own(0), soon=9.0)
    tier.call(1, own(1), soon=50.0)
    tier.call(2, ["a single block"], soon=20.0)
    assert [tier.drop() for _ in range(3)] == [own(0)[-1], own(1)[-1], own(1)[-2]]
    tier.call(0, own(0), soon=10.0)
    tier.call(3, own(3), soon=40.0)
    assert tier.drain() == [own(1)[0], *own(3)[::-1], "a single block", *own(0)[::-1]]


def test_a_dialogue_that_is_cut_once_is_expected_to_go_on() -> None:
    tier, said = Tier(), ["persona"]
    for turn in range(8):
        said.append(f"turn {turn}")
        tier.call(0, said, soon=1.0)
        tier.call(1, own(1), soon=50.0)
    tier.call(0, ["persona", "summary"], soon=1.0)
    gone = [tier.drop() for _ in range(8 + DEPTH)]
    assert gone == [*(f"turn {turn}" for turn in reversed(range(8))), *own(1)[::-1]]
    assert tier.drain() == ["summary", "persona"]


def test_an_agent_that_takes_turns_between_prompts_keeps_both() -> None:
    tier = Tier()
    for turn in range(8):
        tier.call(0, [f"template {turn % 2}", f"text {turn % 2}"], soon=1.0)
        tier.call(1, own(1), soon=50.0)
    assert [tier.drop() for _ in range(DEPTH)] == own(1)[::-1]


def test_forgotten_agents_leave_first_and_leave_nothing() -> None:
    tier = Tier()
    tier.call(0, own(0), soon=1.0)
    tier.call(1, own(1), soon=9.0)
    tier.board.forget([0])
    assert tier.drain() == [*own(0)[::-1], *own(1)[::-1]]
    assert tier.board.num_agents == 1 and len(tier.board.keys) == 0


def test_old_agents_make_room_for_new_ones() -> None:
    board = CallBoard(max_agents=3)
    board.begin("long", "first")
    for number in range(10):
        board.begin(f"call {number}", number)
        board.end(f"call {number}")
    assert board.num_agents == 3
    board.end("long")  # whose agent was never forgotten
    assert [owner.name for owner in board.soonest(9)] == []
    board.expect({"first": 3.0})
    assert [owner.name for owner in board.soonest(9)] == ["first"]


def test_an_open_call_keeps_what_it_uses() -> None:
    tier = Tier()
    tier.call(0, own(0), soon=5.0)
    tier.call(1, own(1), soon=50.0)
    tier.board.begin("open", 1)
    tier.board.used("open", own(1))
    assert tier.drop() == (0, DEPTH - 1)
    assert [owner.name for owner in tier.board.soonest(2)] == [0]
    assert tier.board.use_behind("open").time == 50.0
    tier.board.end("open")
    assert tier.drop() == (1, DEPTH - 1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=40), st.randoms())
def test_nothing_is_kept_of_keys_that_nobody_holds(
    calls: list[tuple[int, int]], rng: random.Random
) -> None:
    tier = Tier()
    for agent, branch in calls:
        who = None if agent == 5 else agent
        tier.call(who, ["all", ("some", agent % 2), (agent, branch), (agent, branch, 1)])
        if rng.random() < 0.5:
            tier.drop()
        assert len(tier.board.keys) == len(tier.order)
    tier.drain()
    assert len(tier.board.keys) == 0


def test_two_calls_of_one_agent_at_once() -> None:
    tier = Tier()
    board = tier.board
    for name in ("one", "two"):
        board.begin(name, "ada")
        board.used(name, ["persona", name])
    for key in ("persona", "one", "two"):
        tier.order.add(key)
    board.expect({"ada": 7.0})
    board.end("one")
    assert board.soonest(1) == []
    board.end("two")
    [ada] = board.soonest(1)
    assert ada.next_use == 7.0
    board.end("two")  # no effect
    assert sorted(map(str, tier.drain())) == ["one", "persona", "two"]


def test_keys_that_leave_and_come_back_during_a_call_are_the_agents() -> None:
    tier = Tier()
    tier.call(0, own(0), soon=5.0)
    tier.call(1, own(1), soon=50.0)
    tier.board.begin("preempted", 0)
    tier.board.used("preempted", own(0))
    for key in own(0):
        tier.order.discard(key)
        tier.board.keys.left([key])
    for key in own(0):
        tier.order.add(key)  # computed again; strays until the call is over
    tier.board.end("preempted")
    tier.board.expect({0: 60.0})
    assert [tier.drop() for _ in own(0)] == own(0)[::-1]
