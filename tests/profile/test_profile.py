"""Profiles of small logs in each format; caches and prompts against the obvious way."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.cli import main
from scalesim.profile.caches import COLD, belady_misses, curve, lru_misses, reuse_distances
from scalesim.profile.calls import LoggedCall, pseudo_tokens
from scalesim.profile.predict import predictability
from scalesim.profile.prompts import breaks
from scalesim.profile.readers import read_log
from scalesim.profile.report import page
from scalesim.profile.statistics import characterise
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick
from tests.traces import write_trace

ORDERS = st.lists(st.integers(0, 6), min_size=1, max_size=60)


# -- caches ------------------------------------------------------------------------------------


def slow_lru(calls: list[int], capacity: int) -> int:
    held: list[int] = []
    misses = 0
    for agent in calls:
        misses += agent not in held
        held = [agent, *[each for each in held if each != agent]][:capacity]
    return misses


@given(ORDERS, st.integers(1, 7))
def test_reuse_distances_give_lru_at_every_size(calls: list[int], capacity: int) -> None:
    assert lru_misses(reuse_distances(calls), capacity) == slow_lru(calls, capacity)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.integers(1, 4))
def test_belady_misses_as_little_as_any_choice_of_victims(calls: list[int], capacity: int) -> None:
    def best(index: int, held: frozenset[int]) -> int:
        if index == len(calls):
            return 0
        agent = calls[index]
        if agent in held:
            return best(index + 1, held)
        if len(held) < capacity:
            return 1 + best(index + 1, held | {agent})
        return 1 + min(best(index + 1, held - {out} | {agent}) for out in held)

    assert belady_misses(calls, capacity) == best(0, frozenset())


@given(ORDERS)
def test_the_curve_falls_to_nothing_and_belady_lies_below(calls: list[int]) -> None:
    rows = curve(calls, (0.2, 0.5, 0.8, 1.0))
    assert all(row["belady"] <= row["lru"] for row in rows)
    assert [row["lru"] for row in rows] == sorted((row["lru"] for row in rows), reverse=True)
    assert rows[-1]["lru"] == rows[-1]["belady"] == 0.0
    assert (reuse_distances(calls) == COLD).sum() == len(set(calls))


# -- prompts -----------------------------------------------------------------------------------


def call(agent: str, time: float, tokens: list[int], template: str = "t") -> LoggedCall:
    return LoggedCall(agent, time, np.array(tokens), 1, template)


def test_where_prompts_part_and_what_moving_would_gain() -> None:
    head, tail = list(range(50)), list(range(100, 180))
    calls = [call("ada", tick, [*head, 1000 + tick, *tail]) for tick in range(5)]
    calls.append(call("bob", 5, [*head[:20], 7, 8, 9]))
    (row,) = breaks(calls)
    assert (row.template, row.pairs, row.part_at) == ("t", 4, 50.0)
    assert (row.prefill, row.gain, row.shared) == (81.0, 80.0, 20.0)
    assert breaks([call("ada", 0, []), call("ada", 1, [])]) == []


def test_a_prompt_that_only_grows_has_nothing_to_gain() -> None:
    (row,) = breaks([call("ada", tick, list(range(20 + tick))) for tick in range(4)])
    assert (row.prefill, row.gain) == (1.0, 0.0)


def test_words_become_tokens_that_are_equal_where_the_words_are() -> None:
    first, second = pseudo_tokens("The cat sat. It purred"), pseudo_tokens("The cat sat! It")
    assert list(first[:3]) == list(second[:3]) and first[3] != second[3]


# -- readers -----------------------------------------------------------------------------------


def logs(folder: Path) -> dict[str, Path]:
    """Three agents that take turns for ten ticks, in every format."""
    paths = {name: folder / f"{name}.log" for name in ("trace", "oasis", "generative-agents",
                                                       "openai")}  # fmt: skip
    turns = [(tick, agent) for tick in range(10) for agent in range(3)]
    write_trace(
        paths["trace"],
        [
            TraceTick(float(tick), [], [
                TraceCall(agent, (TracePiece("head", 20), TracePiece(f"a{agent}", 9 + tick)),
                     TracePiece(f"o{agent}.{tick}", 5), expect=tick + 1.0)
                for agent in range(3)
            ])
            for tick in range(10)
        ],
    )  # fmt: skip
    with sqlite3.connect(paths["oasis"]) as database:
        database.execute("CREATE TABLE trace (user_id, created_at, action, info)")
        database.executemany(
            "INSERT INTO trace VALUES (?, ?, ?, '')",
            [(agent, str(tick), "create_post") for tick, agent in turns] + [(0, "0", "sign_up")],
        )
    database.close()
    paths["generative-agents"].write_text(
        json.dumps({
            f"{agent}:{tick}": {
                "persona_name": f"P{agent}", "step": str(tick), "start_time": str(tick + agent),
                "function_name": "plan", "input": f"You are P{agent}. Tick {tick}. Rules apply.",
                "output": "walks on",
            } for tick, agent in turns
        }, indent=1)
    )  # fmt: skip
    paths["openai"].write_text(
        "\n".join(
            json.dumps({
                "timestamp": f"2026-01-01T00:{tick:02d}:0{agent}", "user": f"u{agent}",
                "messages": [{"role": "system", "content": f"You are u{agent}"},
                             {"role": "user", "content": f"It is {tick}"}],
                "usage": {"completion_tokens": 7},
            }) for tick, agent in turns
        )
    )  # fmt: skip
    return paths


def test_every_format_is_told_and_gives_the_same_simulation(tmp_path: Path) -> None:
    for form, path in logs(tmp_path).items():
        name, calls = read_log(path, "auto", 60.0 if form == "openai" else None)
        assert name == form
        assert len(calls) == 30
        found = characterise(calls, path.name, form)
        totals = found.totals
        assert (totals["agents"], totals["ticks"], totals["activations"]) == (3, 10, 30)
        assert totals["active share of a tick"] == 1.0
        assert found.gaps["p50"] == 1.0 and found.reuse["p50"] == 2.0
        assert bool(found.breaks) == (form != "oasis")
        assert "<svg" in page(found) and json.dumps(found.totals)


def test_declared_hints_of_a_trace_are_scored(tmp_path: Path) -> None:
    _, calls = read_log(logs(tmp_path)["trace"], "auto")
    rows = {row.source: row for row in predictability(calls)}
    assert rows["declared"].on_time == 1.0
    assert rows["last gap"].on_time == 1.0 and rows["last gap"].said < 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no known format"),
        ("hello", "no known format"),
        ('{"messages": 1}', "no agent_id"),
        ('{"messages": [], "user": "u"}', "no step and no timestamp"),
        ('{"messages": [], "user": "u", "time": "teatime"}', "'teatime'"),
        ('{"messages": [], "user": "u", "time": 1}\n{"prompt', "not JSON"),
        ('[{"persona_name": "a"}, 3]', "record 1"),
        ('{"scalesim_trace": 99}', "version"),
        ("SQLite format 3\0 and then nothing", "table trace"),
    ],
)
def test_bad_logs_are_named(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.log"
    path.write_text(text)
    assert main(["profile", str(path), "--out", str(tmp_path / "p.html")]) == 2
    assert words in capsys.readouterr().err


def test_the_command_writes_a_page_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = logs(tmp_path)["trace"], tmp_path / "page.html"
    assert main(["profile", str(log), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "30 calls of 3 agents" in said and "part at" in said
    figures: dict[str, Any] = json.loads((tmp_path / "page.json").read_text())
    assert figures["totals"]["calls"] == 30
    text = out.read_text()
    assert text.count("<svg") == 3 and "script" not in text
    assert main(["profile", str(tmp_path / "none.log")]) == 2
    assert main(["profile", str(log), "--out", str(tmp_path / "only.json")]) == 0
