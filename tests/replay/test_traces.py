"""Trace files: what is written is read, and what is wrong is named. Recorded engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalesim.core import Int32s
from scalesim.errors import TraceError
from scalesim.replay.content import tokens_of
from scalesim.trace.file import read_trace
from scalesim.trace.recorder import Recorder
from scalesim.trace.trace import Hint, TraceCall, TracePiece, TraceTick, with_bursts, with_truth
from tests.traces import write_trace

contents = st.one_of(st.integers(0, 1 << 60), st.text(min_size=1, max_size=5))
pieces = st.builds(TracePiece, contents, st.integers(1, 50), st.integers(0, 9))
agents = st.one_of(st.integers(0, 5), st.text("abc", min_size=1, max_size=2))
times = st.floats(0, 1e6)
turns = st.builds(
    TraceCall, st.none() | agents, st.lists(pieces, min_size=1, max_size=3).map(tuple), pieces,
    st.integers(0, 3), st.none() | st.just("lora"), st.none() | times.filter(bool),
    more_calls=st.none() | st.integers(0, 5),
)  # fmt: skip


@given(st.lists(st.tuples(st.lists(st.builds(Hint, agents, times), max_size=2),
                          st.lists(turns, min_size=1, max_size=3)), max_size=4))  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_a_trace_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[list[Hint], list[TraceCall]]]
) -> None:
    ticks = [TraceTick(float(time), hints, turns) for time, (hints, turns) in enumerate(found)]
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    write_trace(path, ticks)
    assert list(read_trace(path)) == ticks


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "no JSON object"),
        ('{"agent": "a", "prompt": [["x", 1]], "output": ["y", 1]}', "step is None"),
        ('{"step": 1, "agent": "a", "prompt": [], "output": ["y", 1]}', "one at least"),
        ('{"step": 1, "agent": "a", "prompt": [["x", 0]], "output": ["y", 1]}', "length 0"),
        ('{"step": 1, "agent": "a", "prompt": [["x", 1, -1]], "output": ["y", 1]}', "start -1"),
        ('{"step": 1, "agent": "a", "prompt": [["x", 1]]}', "output: None must be"),
        ('{"step": 1, "agent": 1.5, "prompt": [["x", 1]], "output": ["y", 1]}', "agent 1.5"),
        ('{"step": 1, "agent": "a", "expect": NaN}', "expect is nan"),
        ('{"step": 1, "agent": "a", "expects": 3}', "unknown field 'expects'"),
        ('{"step": 1, "expect": 3}', "agent None"),
        ('{"step": 1, "agent": "a", "prompt": [["x", 1]], "output": ["y", 1], "round": -1}',
         "round -1"),
        ('{"step": 1, "agent": "a", "prompt": [["x", 1]], "output": ["y", 1], "more_calls": -1}',
         "more_calls -1"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"scalesim_trace": 1}\n' + line + "\n")
    with pytest.raises(TraceError, match="line 2") as error:
        list(read_trace(path))
    assert says in str(error.value)


def test_ticks_do_not_go_back_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"scalesim_trace": 1}\n{"step": 2, "agent": "a", "expect": 3}\n'
        '{"step": 1, "agent": "a", "expect": 3}\n'
    )
    with pytest.raises(TraceError, match=r"line 3: step 1\.0 after step 2\.0"):
        list(read_trace(path))
    path.write_text('{"scalesim_trace": 2}\n')
    with pytest.raises(TraceError, match="does not begin with"):
        list(read_trace(path))


def test_a_hint_after_a_call_is_that_calls(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"scalesim_trace": 1}\n{"step": 0, "agent": "a", "expect": 1}\n'
        '{"step": 1, "agent": "a", "prompt": [["p", 4]], "output": ["o", 2]}\n'
        '{"step": 1, "agent": "a", "expect": 7}\n'
    )
    first, second = read_trace(path)
    assert first.hints == [Hint("a", 1.0)] and not first.calls
    assert second.calls[0].expect == 7.0 and not second.hints


def test_the_truth_is_the_next_call() -> None:
    def call(agent: str) -> TraceCall:
        return TraceCall(agent, (TracePiece("p", 1),), TracePiece("o", 1))

    ticks = with_truth(
        [TraceTick(0.0, [Hint("b", 9.0)], [call("a")]), TraceTick(3.0, [], [call("b"), call("a")])]
    )
    assert ticks[0].hints[0].truth == 3.0
    told = ticks[0].calls[0].truth
    assert told is not None and 3.0 < told < 3.001
    assert ticks[1].calls[1].truth is None


def test_bursts_are_the_rounds_to_come() -> None:
    def call(agent: str | None, round: int) -> TraceCall:
        return TraceCall(agent, (TracePiece("p", 1),), TracePiece("o", 1), round)

    calls = [call("a", 0), call("b", 0), call("a", 0), call(None, 0), call("a", 1), call("a", 3)]
    (tick, after) = with_bursts([TraceTick(0.0, [], calls), TraceTick(1.0, [], calls[:1])])
    assert [each.more_calls for each in tick.calls] == [2, 0, 2, None, 1, 0]
    assert after.calls[0].more_calls == 0


def recorded(path: Path, prompts: list[tuple[str, Int32s, Int32s]]) -> list[TraceCall]:
    recorder = Recorder(path, block_size=16)
    for number, (agent, prompt, output) in enumerate(prompts):
        recorder.begins(number, agent, float(number), 0.0, prompt)
        recorder.ends(number, output)
    recorder.close()
    return [turn for tick in read_trace(path) for turn in tick.calls]


def shared(first: Int32s, second: Int32s) -> int:
    count = min(len(first), len(second))
    return int(np.cumprod(first[:count] == second[:count]).sum())


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_recorded_prompts_share_what_the_real_ones_share(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """By whole blocks between agents, to the token with the agent's own last call."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    fresh = lambda count: rng.integers(0, 50_000, count, np.int32)  # noqa: E731
    said: list[tuple[str, Int32s, Int32s]] = []
    for _ in range(data.draw(st.integers(2, 6))):
        agent = data.draw(st.sampled_from("ab"))
        start: Int32s = np.empty(0, np.int32)
        if said:
            _, prompt, output = said[data.draw(st.integers(0, len(said) - 1))]
            whole = np.concatenate([prompt, output])
            start = whole[: data.draw(st.integers(0, len(whole)))]
        new = fresh(data.draw(st.integers(1, 60)))
        said.append((agent, np.concatenate([start, new]), fresh(data.draw(st.integers(1, 30)))))
    turns = recorded(tmp_path_factory.mktemp("r") / "t.jsonl", said)
    real = [np.concatenate([prompt, output]) for _, prompt, output in said]
    played = [tokens_of((*turn.prompt, turn.output), 1 << 30) for turn in turns]
    assert [len(one) for one in played] == [len(one) for one in real]
    for later in range(len(said)):
        for earlier in range(later):
            truth = shared(real[earlier], real[later])
            found = shared(played[earlier], played[later])
            assert truth // 16 * 16 <= found <= truth


def test_calls_still_open_at_the_end_leave_no_line(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t.jsonl", 16)
    tokens = np.arange(20, dtype=np.int32)
    recorder.begins(1, "a", 0.0, 0.0, tokens)
    recorder.begins(2, "b", 0.0, 0.0, tokens)
    recorder.expects("b", 0.0, 4.0)
    recorder.ends(2, tokens[:3])
    recorder.close()
    (tick,) = read_trace(tmp_path / "t.jsonl")
    assert [turn.agent for turn in tick.calls] == ["b"] and tick.calls[0].expect == 4.0


def test_rounds_are_what_waited_for_each_other(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t.jsonl", 16)
    tokens = np.arange(20, dtype=np.int32)
    for call in (1, 2):
        recorder.begins(call, "a", 0.0, 0.0, tokens)
    for call in (1, 2):
        recorder.ends(call, tokens[:3])
    recorder.begins(3, "a", 0.0, 0.0, tokens, more_calls=2)
    recorder.ends(3, tokens[:3])
    recorder.close()
    (tick,) = read_trace(tmp_path / "t.jsonl")
    assert [(turn.round, turn.more_calls) for turn in tick.calls] == [(0, None)] * 2 + [(1, 2)]
