"""The policies that a replay knows: the engine's, and those of others."""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.memory.eviction.policies import POLICIES, Policy, policy_named
from scalesim.memory.eviction.ranking import EvictionRanking, MakeRanking
from scalesim.memory.prefetch.planner import MakePlanner
from scalesim.memory.prefetch.prefetcher import Prefetcher
from scalesim.replay.peers.early import EARLY, EarlyLoads
from scalesim.replay.peers.levels import LEVELS, LevelsAhead, LevelsRanking
from scalesim.replay.peers.tail import TAIL_LRU, TailRanking
from scalesim.replay.peers.ttl import TTL, TtlClock, TtlRanking


@dataclass(frozen=True, slots=True)
class Planning:
    """The ranking and the prefetcher of a policy's memory."""

    make_ranking: MakeRanking = EvictionRanking
    make_planner: MakePlanner = Prefetcher


_PEERS = {
    LEVELS: Planning(LevelsRanking, LevelsAhead),
    EARLY: Planning(make_planner=EarlyLoads),
    TTL: Planning(TtlRanking, TtlClock),
    TAIL_LRU: Planning(TailRanking),
}
PEERS = tuple(policy.name for policy in _PEERS)
REPLAY_POLICIES = POLICIES | {policy.name: policy for policy in _PEERS}


def replay_policy(name: str) -> Policy:
    """The policy called ``name``. Raises ``ConfigError``, naming the known ones."""
    return policy_named(name, REPLAY_POLICIES)


def planning_of(policy: Policy) -> Planning:
    return _PEERS.get(policy, Planning())
