"""What is found again depends on what was asked, not on how fast copies and steps were; but where a
policy weighs loading against computing again."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest

from benchmarks.dialogues import Transcript, make_dialogues
from benchmarks.stub_engine import BLOCK_SIZE, Stopwatch, StubSettings, stub_parts
from scalesim.engine.backends import CpuBackend, available_bytes
from scalesim.engine.engine import Engine
from scalesim.memory.eviction.policies import ENGINE_POLICIES, POLICIES
from scalesim.memory.pools.pinned import available_host_bytes
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams

DIALOGUES = make_dialogues(16, 3, 96, 8, 8, 1000, 0)
PER_AGENT = -(-DIALOGUES.max_len // BLOCK_SIZE)
EVERYTHING = DIALOGUES.num_agents * PER_AGENT
PARAMS = SamplingParams(8, temperature=0.0, ignore_eos=True)
SPEEDS = ((24_000.0, 0.025), (1e6, 0.025), (2_000.0, 0.025), (24_000.0, 1.0), (300.0, 0.001))
"""Pages a second of the link, seconds a step."""


def play(policy: str, pages: int, link_pages_per_s: float, step_s: float) -> tuple[int, list[int]]:
    """Cached tokens of the whole play, and all that was said."""
    settings = StubSettings(
        pages, EVERYTHING, 8, 256, DIALOGUES.max_len, policy,
        link_pages_per_s=link_pages_per_s, step_s=step_s,
    )  # fmt: skip
    transcript, said = Transcript(DIALOGUES), []
    with Engine(stub_parts(settings, Stopwatch())) as engine:
        for agent in range(DIALOGUES.num_agents):
            engine.agent(agent)
        for turn in range(DIALOGUES.num_turns):
            prompts = transcript.prompts(turn)
            requests = [Request(prompt, agent, PARAMS) for agent, prompt in enumerate(prompts)]
            for agent, reply in enumerate(engine.run(requests)):
                assert not isinstance(reply, Exception)
                outputs = np.array([reply.token_ids], np.int32)
                transcript.answer(turn, slice(agent, agent + 1), outputs)
                said += reply.token_ids
        return engine.stats.cached_tokens, said


@pytest.mark.parametrize("policy", ENGINE_POLICIES)
def test_where_everything_fits_all_of_it_is_found(policy: str) -> None:
    plays = [play(policy, EVERYTHING, *speed) for speed in SPEEDS]
    assert {cached for cached, _ in plays} == {everything_found()}
    assert all(said == plays[0][1] for _, said in plays)


@pytest.mark.parametrize("policy", ENGINE_POLICIES)
def test_what_speeds_may_change_of_what_is_found(policy: str) -> None:
    """Nothing without copies. With them, who waits for a copy is served later and what leaves is
    chosen in that order: little. Only where loading is weighed, much. Texts never."""
    plays = [play(policy, int(0.6 * EVERYTHING), *speed) for speed in SPEEDS]
    assert all(said == plays[0][1] for _, said in plays)
    found = [cached for cached, _ in plays]
    if not POLICIES[policy].host:
        assert len(set(found)) == 1, found
    elif not POLICIES[policy].weighs:
        assert min(found) >= 0.97 * max(found), found
    assert 0 < max(found) < everything_found()


def everything_found() -> int:
    """Tokens whose state is there when a turn begins, if nothing was lost: all but the last one
    said."""
    return sum(
        DIALOGUES.num_agents * (DIALOGUES.prompt_len(turn) + DIALOGUES.output_len - 1)
        for turn in range(DIALOGUES.num_turns - 1)
    )


def test_a_full_file_cache_makes_no_pool_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much memory lies idle at the moment is chance; how much can be had is not."""
    if not os.path.exists("/proc/meminfo"):
        pytest.skip("only Linux tells the two apart")
    asked = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_AVPHYS_PAGES" else asked(name))
    assert available_bytes() > available_host_bytes() // 2
    assert CpuBackend().resident_bytes() > available_host_bytes() // 4


def test_who_should_hold_everything_and_cannot_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="scalesim.memory.residency"):
        play("resident", EVERYTHING, *SPEEDS[0])
        assert not caplog.records
        play("resident", EVERYTHING // 2, *SPEEDS[0])
    assert [record.getMessage()[:18] for record in caplog.records] == ["policy 'resident' "]
