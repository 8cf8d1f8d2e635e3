"""Traces in other people's formats: read, written, told apart, and refused with a sentence."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalesim.errors import ConfigError, TraceError
from scalesim.replay.content import tokens_of
from scalesim.replay.formats import FORMATS, detect, gathered, read, write
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick

ORIGIN = {"schema": "dynamo.agentic_mooncake", "version": 2, "block_size": 16,
          "hash_id_scope": "local", "source": {"format": "own", "digest": "none"}}  # fmt: skip


def ended(number: int, at: int, ids: list[int], session: str | None = None) -> dict[str, Any]:
    replay = {"trace_block_size": 16, "input_length": 16 * len(ids),
              "input_sequence_hashes": ids}  # fmt: skip
    request = {"request_id": f"r{number}", "output_tokens": 5, "request_received_ms": at,
               "total_time_ms": 7, "replay": replay}  # fmt: skip
    line: dict[str, Any] = {"schema": "dynamo.request.trace.v1", "event_type": "request_end",
                            "event_time_unix_ms": at + 7, "request": request}  # fmt: skip
    return line if session is None else {**line, "agent_context": {"session_id": session}}


def agentic(
    name: str,
    session: str,
    ids: list[int],
    *,
    at: float = 0,
    play: str = "p",
    after: tuple[str, ...] = (),
    trigger: str = "completion",
) -> dict[str, Any]:
    waits = [{"request_id": one, "trigger": trigger, "delay_ms": 5, "relation": "sequence"}
             for one in after]  # fmt: skip
    return {"request_id": name, "play_id": play, "session_id": session, "model": "m",
            "input_length": 16 * len(ids), "output_length": 3, "hash_ids": ids,
            "not_before_ms": at, "dependencies": waits}  # fmt: skip


SAMPLES: dict[str, list[Any]] = {
    "mooncake": [
        {"timestamp": 0, "input_length": 1100, "output_length": 20, "hash_ids": [0, 1, 2]},
        {"timestamp": 0, "input_length": 600, "output_length": 9, "hash_ids": [0, 3]},
        {"timestamp": 3000, "input_length": 2000, "output_length": 8, "hash_ids": [0, 1, 4, 5]},
        {"timestamp": 3000.5, "session_id": "s", "input_length": 8, "output_length": 1,
         "hash_ids": [6]},
    ],
    "mooncake-delta": [
        {"session_id": "d", "timestamp": 5, "input_length": 16, "output_length": 4,
         "hash_ids": [1]},
        {"session_id": "d", "delay": 5, "input_length": 8, "output_length": 4, "hash_ids": [2]},
    ],
    "dynamo": [
        {"event_type": "request_payload", "request_id": "r0"},
        ended(0, 1000, [7, 8], "ada"),
        ended(1, 1010, [7, 9, 10], "bob"),
        ended(2, 1400, [7, 8, 11], "ada"),
    ],
    "agentic-mooncake": [
        ORIGIN,
        agentic("root", "main", [1, 2]),
        agentic("child", "child", [1, 3], after=("root",), trigger="dispatch"),
        agentic("join", "main", [1, 2, 4], after=("root", "child")),
    ],
    "applied-compute": [
        {"num_turns": 2, "input_prompt_length": 16, "assistant_response_length": [4, 5],
         "tool_call_output_length": [8, 0], "tool_call_latency": [0.5, 0],
         "final_assistant_response_length": 6},
    ],
    "azure": [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:17:03.9799600,4808,10",
        "2023-11-16 18:17:04.0319600,3180,8",
    ],
    "town": [
        {"kind": "action", "step": 0, "time": "06:00", "agent": 0, "place": "x", "activity": "y"},
        {"kind": "action", "step": 0, "time": "06:00", "agent": 1, "place": "x", "activity": "y"},
        {"kind": "chat", "step": 2, "agents": [0, 1], "turns": [[0, 23], [1, 49], [0, 1]]},
    ],
    "scalesim": [
        {"scalesim_trace": 1},
        {"step": 0, "agent": "a", "prompt": [["x", 40], ["y", 3]], "output": ["o", 5]},
        {"step": 2, "agent": "b", "prompt": [["x", 64]], "output": ["p", 5], "expect": 4},
    ],
}  # fmt: skip
WRITTEN = [name for name, form in FORMATS.items() if form.write is not None]


def text_of(name: str) -> str:
    lines = SAMPLES[name]
    return "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)


def sample(name: str, folder: Path) -> Path:
    path = folder / f"{name}.txt"
    path.write_text(text_of(name))
    return path


def calls(ticks: list[TraceTick]) -> list[Any]:
    """Of each call, in order: when, by whom, how long, and how much it has in common with each call
    before it. Names of contents are no part of it."""
    found, tokens = [], []
    for tick in ticks:
        for turn in tick.calls:
            own = tokens_of(turn.prompt, 1 << 30)
            common = [
                int((own[: min(len(own), len(other))] == other[: min(len(own), len(other))])
                    .cumprod().sum())
                for other in tokens
            ]  # fmt: skip
            tokens.append(own)
            found.append((tick.time, turn.agent, turn.prompt_len, turn.output.length, common))
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_told_by_its_content(name: str, tmp_path: Path) -> None:
    path = sample(name, tmp_path)
    alike = {"mooncake-delta": "mooncake"}  # the same lines mean another thing: it must be named
    assert detect(path).name == alike.get(name, name)
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    if name != "scalesim":
        assert read(packed, detect(packed)) and detect(packed).name == alike.get(name, name)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("first", FORMATS)
def test_what_is_written_is_read_again(first: str, name: str, tmp_path: Path) -> None:
    """From any format to any other: the same calls, as far as the format can say, and from then on
    exactly the same."""
    ticks = read(sample(first, tmp_path), FORMATS[first])
    write(tmp_path / "once", ticks, FORMATS[name], 16 if FORMATS[name].blocks else None)
    once = read(tmp_path / "once", FORMATS[name], 16 if name == "mooncake" else None)
    if name != "azure" and first != "azure":
        starts = ticks[0].time if name == "dynamo" else 0.0  # which counts from its first call
        shift = [(time - starts, who, *rest) for time, who, *rest in map(list, calls(ticks))]
        told = [(time, *rest) for time, *rest in map(list, calls(once))]
        assert [who for _, who, *_ in told] == [str(who) if name != "scalesim" else who
                                                for _, who, *_ in shift]  # fmt: skip
        for (at, _, *own), (time, _, *rest) in zip(shift, told, strict=True):
            assert time == pytest.approx(at, abs=1e-6)
            assert rest[:2] == own[:2]
            assert all(a == b or a // 16 == b // 16 for a, b in zip(rest[2], own[2], strict=True))
    write(tmp_path / "twice", once, FORMATS[name], 16 if FORMATS[name].blocks else None)
    assert calls(read(tmp_path / "twice", FORMATS[name], 16 if name == "mooncake" else None)) == (
        calls(once)
    )


@pytest.mark.parametrize("name", WRITTEN)
def test_its_own_format_brings_everything_back(name: str, tmp_path: Path) -> None:
    ticks = read(sample(name, tmp_path), FORMATS[name])
    size = {"mooncake": 512}.get(name, 16) if FORMATS[name].blocks else None
    write(tmp_path / "out", ticks, FORMATS[name], size)
    again = read(tmp_path / "out", FORMATS[name])
    assert calls(again) == calls(ticks)
    if name in ("mooncake", "azure", "scalesim"):
        assert again == ticks  # names of contents too: they were in order


def test_what_the_samples_mean(tmp_path: Path) -> None:
    def told(name: str) -> list[TraceTick]:
        return read(sample(name, tmp_path), FORMATS[name])

    first, third, fourth = told("mooncake")
    assert [turn.agent for turn in first.calls] == ["session 0", "session 1"]
    assert third.calls[0].agent == "session 0"  # it begins with all whole blocks of the first
    assert (fourth.time, fourth.calls[0].agent) == (3.0005, "s")

    (one, two) = told("mooncake-delta")
    assert two.time == 0.01
    assert two.calls[0].prompt == (*one.calls[0].prompt, one.calls[0].output, TracePiece(2, 8))

    ticks = told("agentic-mooncake")
    assert [(tick.time, tick.calls[0].agent) for tick in ticks] == [
        (0.0, "main"), (0.005, "child"), (0.01, "main")]  # fmt: skip

    turns = [turn for tick in told("applied-compute") for turn in tick.calls]
    assert [(turn.prompt_len, turn.output.length, turn.round) for turn in turns] == [
        (16, 4, 0), (28, 5, 0), (33, 6, 1)]  # fmt: skip

    start, later = told("azure")
    assert start.time == 0.0 and later.time == 0.052 and start.calls[0].agent is None

    act, chat = told("town")
    assert [turn.agent for turn in act.calls] == ["0", "1"]
    assert [(turn.agent, turn.output.length, turn.round) for turn in chat.calls] == [
        ("0", 23, 0), ("1", 49, 0), ("0", 1, 1)]  # fmt: skip


def test_plays_share_nothing(tmp_path: Path) -> None:
    rows = [ORIGIN, *(agentic(f"{play}0", "main", [1, 2], play=play) for play in "pq")]
    path = tmp_path / "two"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tick,) = read(path, detect(path))
    assert [turn.agent for turn in tick.calls] == ["p/main", "q/main"]
    assert calls([tick])[1][-1] == [0]


def test_seconds_become_ticks(tmp_path: Path) -> None:
    def call(agent: str | None, round: int = 0) -> TraceCall:
        return TraceCall(agent, (TracePiece("p", 1),), TracePiece("o", 1), round)

    ticks = [
        TraceTick(0.5, [], [call("a"), call("a", 1), call(None)]),
        TraceTick(9.9, [], [call("b"), call("a"), call("a"), call(None)]),
        TraceTick(35.0, [], [call("a")]),
    ]
    first, last = gathered(ticks, 10.0)
    assert [(turn.agent, turn.round) for turn in first.calls] == [
        ("a", 0), ("a", 1), (None, 0), ("b", 0), ("a", 2), ("a", 2), (None, 0)]  # fmt: skip
    assert (first.time, last.time) == (0.0, 3.0)
    with pytest.raises(ConfigError, match="--tick 1e-305"):
        gathered(ticks, 1e-305)
    assert [tick.time for tick in gathered(ticks, 1e30)] == [0.0]


def changed(name: str, at: int, **fields: Any) -> list[Any]:
    lines = json.loads(json.dumps(SAMPLES[name]))
    for path, value in fields.items():
        target, *rest = path.split("__")
        place = lines[at]
        while rest:
            place, target = place[int(target) if target.isdigit() else target], rest.pop(0)
        place[target] = value
    return lines


WRONG: list[tuple[str, list[Any], str]] = [
    ("mooncake", changed("mooncake", 1, input_length=10**12), "line 2: input_length is 1000000000"),
    ("mooncake", changed("mooncake", 1, output_length=0), "output_length is 0; it must be a whole"),
    ("mooncake", changed("mooncake", 1, output_length=True), "output_length is True"),
    ("mooncake", changed("mooncake", 1, hash_ids=[1]), "hash_ids has 1 ids for input_length 600"),
    ("mooncake", changed("mooncake", 1, hash_ids=[0, -1]), "a list of whole numbers"),
    ("mooncake", changed("mooncake", 1, hash_ids="0,1"), "hash_ids is '0,1'; it must be a list"),
    ("mooncake", changed("mooncake", 1, timestamp=float("nan")), "timestamp is nan"),
    ("mooncake", changed("mooncake", 1, timestamp="soon"), "timestamp is 'soon'"),
    ("mooncake", changed("mooncake", 1, timestamp=None), "no timestamp"),
    ("mooncake", changed("mooncake", 3, session_id="\ud800"), "session_id is"),
    ("mooncake", changed("mooncake", 3, session_id="x" * 600), "a name of 1 to 500"),
    ("mooncake", [*SAMPLES["mooncake"], []], "line 5 is []; it must be a JSON object"),
    ("mooncake", [*SAMPLES["mooncake"], "{"], "line 5 is not JSON"),
    ("mooncake", [*SAMPLES["mooncake"], "[" * 100_000], "line 5 is nested deeper"),
    ("mooncake", [*SAMPLES["mooncake"], '{"timestamp": ' + "9" * 5000 + "}"], "line 5 is not JSON"),
    ("dynamo", changed("dynamo", 1, schema="v2"), "schema is 'v2'"),
    ("dynamo", changed("dynamo", 2, request=None), "request is None; it must be an object"),
    ("dynamo", changed("dynamo", 2, request__replay__trace_block_size=8), "trace_block_size is 8"),
    ("dynamo", changed("dynamo", 2, agent_context=None), "all or none"),
    ("dynamo", changed("dynamo", 2, request__request_received_ms=None, request__total_time_ms=9999),
     "total_time_ms is 9999"),
    ("agentic-mooncake", changed("agentic-mooncake", 0, version=1), "version is 1; it must be 2"),
    ("agentic-mooncake", changed("agentic-mooncake", 0, block_size=0), "block_size is 0"),
    ("agentic-mooncake", changed("agentic-mooncake", 2, request_id="root"), "earlier line has it"),
    ("agentic-mooncake", changed("agentic-mooncake", 2, dependencies__0__request_id="who"),
     "dependencies: request_id is 'who'"),
    ("agentic-mooncake", changed("agentic-mooncake", 2, dependencies__0__request_id="join"),
     "do not wait for this one in turn"),
    ("agentic-mooncake", changed("agentic-mooncake", 2, dependencies__0__trigger="now"), "trigger"),
    ("agentic-mooncake", changed("agentic-mooncake", 2, dependencies=[1]), "a list of objects"),
    ("applied-compute", changed("applied-compute", 0, num_turns=10**9), "num_turns is 1000000000"),
    ("applied-compute", changed("applied-compute", 0, num_turns=3), "a list of 3"),
    ("applied-compute", changed("applied-compute", 0, tool_call_latency=[0, -1]), "latency is -1"),
    ("azure", [*SAMPLES["azure"], "yesterday,3,4"], "line 4: TIMESTAMP is 'yesterday'"),
    ("azure", [*SAMPLES["azure"], "2023-02-31 00:00:00,3,4"], "a time like"),
    ("azure", [*SAMPLES["azure"], "2023-11-16 18:17:03,3"], "line 4 has 2 cells"),
    ("azure", [*SAMPLES["azure"], "2023-11-16 18:17:03,3,4.5"], "GeneratedTokens is '4.5'"),
    ("town", changed("town", 2, kind="fight"), "kind is 'fight'"),
    ("town", changed("town", 2, turns=[[0]]), "a list of [speaker, characters]"),
    ("town", changed("town", 0, step=-1), "step is -1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "lines", "says"), WRONG)
def test_what_is_wrong_is_named(name: str, lines: list[Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    with pytest.raises(TraceError, match=re.escape(says)):
        read(path, FORMATS[name])


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "t"
    for content, says in (
        (b"", "is empty"),
        (b'{"no": "trace"}', "in no known format"),
        (b"\xff\xfe\x00", "is not UTF-8"),
        (b"\x1f\x8b broken", "cannot be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(TraceError, match=says):
            detect(path)
    for wrong, says in ((tmp_path, "is a folder"), (tmp_path / "none", "is missing")):
        with pytest.raises(TraceError, match=says):
            detect(wrong)
    path.write_text(SAMPLES["azure"][0])
    with pytest.raises(TraceError, match="has no calls"):
        read(path, FORMATS["azure"])
    with pytest.raises(ConfigError, match="have no blocks"):
        read(path, FORMATS["azure"], 16)


def test_a_line_without_end_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(40):
            file.write(b" " * (1 << 20))
    with pytest.raises(TraceError, match="longer than the 16 MiB"):
        detect(path)


def test_a_file_that_is_there_is_kept_and_half_a_file_is_not(tmp_path: Path) -> None:
    ticks = read(sample("mooncake", tmp_path), FORMATS["mooncake"])
    there = tmp_path / "there"
    there.write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        write(there, ticks, FORMATS["azure"])
    assert there.read_text() == "mine"
    with pytest.raises(ConfigError, match="no format that can be written"):
        write(tmp_path / "new", ticks, FORMATS["town"])
    mixed = [
        *ticks,
        TraceTick(9.0, [], [TraceCall(None, (TracePiece("p", 1),), TracePiece("o", 1))]),
    ]
    with pytest.raises(TraceError, match="all calls, or for none"):
        write(tmp_path / "new", mixed, FORMATS["dynamo"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mooncake.txt", "there"]


values = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=3),
    st.just([]), st.just({}), st.lists(st.integers(-1, 3), max_size=3), st.just([[]]),
    st.just("\ud800"), st.just(10**12),
)  # fmt: skip


def mutated(line: Any, data: st.DataObject) -> str:
    """``line`` with one value of its tree replaced, removed or cut short."""
    if isinstance(line, str):
        cells = line.split(",")
        cells[data.draw(st.integers(0, len(cells) - 1))] = str(data.draw(values))
        return ",".join(cells)
    line = json.loads(json.dumps(line))
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(line)
    node, key = data.draw(st.sampled_from(places))
    if isinstance(node, dict) and data.draw(st.booleans()):
        del node[key]
    else:
        node[key] = data.draw(values)
    text = json.dumps(line)
    return text[: data.draw(st.integers(0, len(text)))] if data.draw(st.booleans()) else text


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "scalesim"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_change_of_a_good_line_is_refused_or_is_a_trace(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """Nothing but ``TraceError`` is raised, and what is read can be written and read again."""
    folder = tmp_path_factory.mktemp("t")
    lines = SAMPLES[name]
    at = data.draw(st.integers(0, len(lines) - 1))
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    texts[at] = mutated(lines[at], data)
    path = folder / "t"
    path.write_bytes("\n".join(texts).encode("utf-8", "surrogatepass"))
    try:
        ticks = read(path, FORMATS[name])
    except TraceError as error:
        assert str(path) in str(error) and len(str(error)) < 1000
        return
    assert all(tick.calls for tick in ticks)
    assert [tick.time for tick in ticks] == sorted({tick.time for tick in ticks})
    total = sum(turn.prompt_len for tick in ticks for turn in tick.calls)
    for turn in (turn for tick in ticks for turn in tick.calls):
        assert 1 <= turn.prompt_len <= 1 << 25 and 1 <= turn.output.length <= 1 << 24
    if total < 100_000:
        for to in ("scalesim", "mooncake", "agentic-mooncake"):
            writing: Callable[..., None] | None = FORMATS[to].write
            assert writing is not None
            out = io.StringIO()
            writing(out, ticks, 16 if FORMATS[to].blocks else None)
            (folder / "again").write_text(out.getvalue())
            again = read(folder / "again", FORMATS[to], 16 if to == "mooncake" else None)
            assert len(calls(again)) == len(calls(ticks))
