"""The eviction strategy on a small tree of its own, and what the hooks hear."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from scalesim.memory.tree.owner import MANY_OWNERS
from scalesim.sglang.plugin import (
    CORE_VARIABLE,
    adapter_chosen,
    core_chosen,
    node_added,
    node_split,
    queued,
    register,
    released,
)
from scalesim.sglang.strategy import NextUseStrategy


@dataclass(eq=False)
class Node:
    """SGLang's tree node, by the attributes that are read."""

    name: str
    parent: Node | None = None
    key: Any = "a part of a prompt"
    last_access_time: int = 0
    children: int = 0


@dataclass
class Tree:
    """A tree core and its cache in one: prompts of two nodes below a common one."""

    eviction_strategy: Any = field(default_factory=NextUseStrategy)
    leaves: dict[str, Node] = field(default_factory=dict)
    accesses: int = 0

    def __post_init__(self) -> None:
        self.root = Node("root", key=None)
        self.shared = Node("shared", self.root)

    def call(self, session: str | None, *, lora: str | None = None, **said: Any) -> None:
        params = SimpleNamespace(custom_params={"scalesim": said} if said else None)
        self.accesses += 1
        request = SimpleNamespace(
            rid=f"r{self.accesses}", session_id=session, sampling_params=params, lora_id=lora
        )
        queued(SimpleNamespace(tree_cache=self), request)
        name = session or request.rid
        node = self.leaves.get(name)
        if node is None:
            node = self.leaves[name] = Node(name, self.shared)
            node_added(node, self, self.shared, "key", "value", session_id=session)
        node.last_access_time = self.shared.last_access_time = self.accesses
        released(None, self, request, checkpointed=True)

    def first(self) -> str:
        return min(self.leaves.values(), key=self.eviction_strategy.get_priority).name

    def drain(self) -> list[str]:
        order = []
        while self.leaves:
            order.append(self.first())
            del self.leaves[order[-1]]
        return order


def test_what_is_used_last_leaves_first() -> None:
    tree = Tree()
    tree.call("ada", now=1, next=30)
    tree.call("bob", now=2, next=10)
    tree.call("cy", now=3, next=20, expect={"bob": 40})
    assert tree.drain() == ["bob", "ada", "cy"]


def test_without_hints_the_order_is_that_of_lru() -> None:
    tree = Tree()
    for name in ("ada", None, "bob", "ada"):
        tree.call(name)
    assert tree.drain() == ["r2", "bob", "ada"]


def test_a_shared_node_goes_with_the_soonest_owner() -> None:
    tree = Tree()
    for name, soon in (("ada", 30), ("bob", 5), ("cy", 20)):
        tree.call(name, now=1, next=soon)
    priority = tree.eviction_strategy.get_priority
    assert priority(tree.leaves["cy"]) < priority(tree.shared)
    assert priority(tree.shared)[:2] == priority(tree.leaves["bob"])[:2]
    for number in range(MANY_OWNERS + 1):
        tree.call(f"agent {number}", next=1000 + number)
    assert priority(tree.shared) > priority(tree.leaves["bob"])


def test_a_split_keeps_the_owners() -> None:
    tree = Tree()
    tree.call("ada", next=9)
    lower = tree.leaves["ada"]
    lower.parent = upper = Node("upper", tree.shared)
    node_split((upper, None), tree, "key", lower, 1)
    priority = tree.eviction_strategy.get_priority
    assert priority(upper)[:3] == priority(lower)[:3]


@pytest.mark.parametrize("seed", range(3))
def test_two_ranks_evict_alike(seed: int) -> None:
    rng, ranks = random.Random(seed), (Tree(), Tree())
    for now in range(60):
        name, soon = f"agent {rng.randrange(8)}", now + rng.randrange(1, 30)
        said = {} if rng.random() < 0.3 else {"now": now, "next": soon}
        for tree in ranks:
            tree.call(name, **said)
        if now % 7 == 0:
            one, two = (tree.first() for tree in ranks)
            assert one == two
            for tree in ranks:
                del tree.leaves[one]
    assert ranks[0].drain() == ranks[1].drain()


def victim(*names: str, lru: str = "the oldest") -> str | None:
    """Which of ``names``, the least recently used first, leaves; LRU chose ``lru``."""
    return adapter_chosen(lru, SimpleNamespace(access_order=dict.fromkeys(names)), {*names})


def test_adapters_leave_by_the_next_use_of_their_agents() -> None:
    tree = Tree()
    for name, lora, soon in (("ada", "x", 30), ("bob", "y", 40), ("cy", "x", 90), ("di", "z", 35)):
        tree.call(name, lora=lora, now=1, next=soon)
    assert victim("x", "z", "y") == "y"
    assert victim("x", "z") == "z"  # the first agent of x calls before
    tree.call("ada", now=2, next=50)  # by the base model from now on
    assert victim("z", "x", "y") == "x"
    tree.call("bob", lora="z", now=3, next=95)
    assert victim("z", "x") == "x"
    assert victim("z", "y") == "y"  # nobody's any more
    assert adapter_chosen(None, None, {None}) is None


def test_adapters_of_agents_that_say_nothing_leave_as_by_lru() -> None:
    tree = Tree()
    for name, lora in (("ada", "x"), ("bob", "y"), ("cy", "z")):
        tree.call(name, lora=lora)
    assert victim("x", "y", "z") == "x"
    for number in range(MANY_OWNERS + 1):
        tree.call(f"agent {number}", lora="x", next=1000 + number)
    assert victim("x", "y", "z") == "y"  # so many share x that one of them always calls soon


def test_other_policies_are_left_alone() -> None:
    tree = Tree(eviction_strategy="lru")
    tree.call("ada", lora="x", next=9)
    assert not hasattr(tree.leaves["ada"], "scalesim_owners")
    assert victim("x", "y", lru="y") == "y"


def test_a_hint_that_cannot_be_read_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    tree = Tree()
    for _ in range(3):
        tree.call("ada", next="soon")
    assert tree.eviction_strategy.hints.num_malformed == 3 and len(caplog.records) == 1


def test_the_core_in_rust_is_refused() -> None:
    mine, others = (
        SimpleNamespace(eviction_policy="Next-Use"),
        SimpleNamespace(eviction_policy="lru"),
    )
    core_chosen("python", "rust", mine)
    core_chosen("rust", "rust", others)
    with pytest.raises(ValueError, match=f"set {CORE_VARIABLE}=python"):
        core_chosen("rust", "rust", mine)


def test_register_never_raises(caplog: pytest.LogCaptureFixture) -> None:
    register()  # there is no SGLang here
    assert "is off" in caplog.text
    register()
    assert len(caplog.records) == 1
