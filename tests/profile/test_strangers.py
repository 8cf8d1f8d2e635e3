"""Logs from strangers: whatever a file holds, reading it gives calls or a ``TraceError``, soon."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scalesim.cli import main
from scalesim.errors import ConfigError, TraceError
from scalesim.profile.readers import READERS, read_log
from scalesim.profile.statistics import characterise
from scalesim.trace import records
from tests.profile.test_profile import logs

HOSTILE: tuple[Any, ...] = (
    None, True, [], {}, [[]], {"a": None}, "", "x", "nan", "inf", "-1e400", "\ud800", "\x1b[31m",
    "[/]", "a" * (records.MAX_TEXT + 1), "9" * 5000, -1, 2**31, 2**63, 2**64, 10**12, 10**400,
    1.5, 1e300, float("nan"), float("inf"), "0001-01-01", "2026-13-01",
)  # fmt: skip
DEEP = "[" * 100_000


def read(path: Path, form: str, tick_s: float | None = None) -> None:
    """Raises whatever is no ``TraceError`` that names the file and fits on a screen."""
    try:
        _, calls = read_log(path, form, tick_s)
    except TraceError as error:
        assert str(path) in str(error) and len(str(error)) < 600 + len(str(path)), str(error)[:900]
    except ConfigError as error:
        assert tick_s is not None, error
    else:
        if sum(len(call.tokens) for call in calls) < 100_000:
            characterise(calls, path.name, form)


def places(value: Any) -> list[tuple[Any, ...]]:
    """The path to each value inside of ``value``."""
    found: list[tuple[Any, ...]] = [()]
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        found += [(key, *rest) for rest in places(inner)]
    return found


def changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = changed(value[place[0]], place[1:], new)
    return copy


@pytest.mark.parametrize("form", ["trace", "openai", "generative-agents"])
@pytest.mark.filterwarnings("error")
def test_any_value_anywhere(form: str, tmp_path: Path) -> None:
    """Each value of a record, and of its parts, is replaced by each hostile one."""
    whole = logs(tmp_path)[form].read_text()
    path = tmp_path / "log"
    if form == "generative-agents":
        entries = list(json.loads(whole).values())[:6]
        head: list[str] = []
    else:
        lines = whole.splitlines()[:7]
        head = lines[: form == "trace"]
        entries = [json.loads(line) for line in lines[len(head) :]]
    for place in places(entries[1]):
        for new in HOSTILE:
            wrong = [entries[0], changed(entries[1], place, new), *entries[2:]]
            if form == "generative-agents":
                path.write_text(json.dumps(wrong))
            else:
                path.write_text("\n".join([*head, *map(json.dumps, wrong)]))
            read(path, form)


@pytest.mark.parametrize("form", ["trace", "openai", "generative-agents"])
def test_any_bytes_anywhere(form: str, tmp_path: Path) -> None:
    """Cut short, bytes changed, deep nesting and long numbers put in."""
    whole = logs(tmp_path)[form].read_bytes()[:4000]
    path, rng = tmp_path / "log", random.Random(7)
    for _ in range(150):
        raw, at = bytearray(whole), rng.randrange(len(whole))
        how = rng.randrange(4)
        if how == 0:
            del raw[at:]
        elif how == 1:
            raw[at] = rng.randrange(256)
        elif how == 2:
            raw[at:at] = rng.choice(
                (DEEP.encode(), b"9" * 5000, b"\xff\xfe", b"\0", b'{"a":' * 999)
            )
        else:
            raw[at : at + rng.randrange(40)] = b""
        path.write_bytes(raw)
        read(path, form)
        read(path, "auto")


@given(
    st.lists(
        st.tuples(*[st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text()
                    | st.binary(max_size=9)] * 3), max_size=5)
)  # fmt: skip
@example([("a", "²", "post"), ("a", "nan", "post")])
@example([("a", 1, "[/]"), ("b", 2**62, "post")])
@settings(max_examples=60, deadline=None)
def test_any_row_of_a_database(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]]
) -> None:
    path = tmp_path_factory.mktemp("db") / "a?b#c%20.db"
    database(path, "CREATE TABLE trace (user_id, created_at, action, info)", rows)
    read(path, "oasis")


def database(path: Path, schema: str, rows: Sequence[tuple[Any, ...]] = ()) -> None:
    with closing(sqlite3.connect(path)) as made:
        made.executescript(schema)
        if not rows:
            return
        with made:
            made.executemany("INSERT INTO trace VALUES (?, ?, ?, '')", rows)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (f"CREATE VIEW trace AS {ENDLESS} i AS user_id, i AS created_at, 'x' AS action FROM n",
         "not a view"),
        ("CREATE VIRTUAL TABLE trace USING fts5(user_id, created_at, action)", "virtual table"),
        ("CREATE TABLE trace (user_id, created_at, action AS (zeroblob(999999999)))",
         "stores no column action"),
        ("CREATE TABLE trace (user_id, created_at)", "stores no column action"),
        ("CREATE TABLE other (x)", "no table trace"),
    ],
)  # fmt: skip
def test_a_database_that_computes_is_refused(schema: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    database(path, schema)
    for form in ("oasis", "auto"):
        with pytest.raises(TraceError, match=says):
            read_log(path, form)


def test_a_read_takes_no_more_steps_than_its_file_can_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(f"u{index % 9}", index, "post") for index in range(20_000)]
    path = tmp_path / "log.db"
    database(path, "CREATE TABLE trace (user_id, created_at, action, info)", rows)
    assert len(read_log(path, "auto")[1]) == len(rows)
    monkeypatch.setattr("scalesim.profile.database.STEPS_A_BYTE", 0)
    monkeypatch.setattr("scalesim.profile.database.STEPS_A_FILE", 1000)
    with pytest.raises(TraceError, match="too many steps"):
        read_log(path, "auto")


@pytest.mark.parametrize("form", ["auto", *READERS])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing", "null", "loop"])
def test_only_a_regular_file_is_a_log(kind: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "null":
        path = tmp_path / "a\0b"
    elif kind == "loop":
        path.symlink_to(path)
    with pytest.raises(TraceError) as error:
        read_log(path, form)
    assert str(path) in str(error.value)


def test_a_pipe_is_no_trace_for_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "log")
    assert main(["replay", str(tmp_path / "log")]) == 2
    assert "pipe" in capsys.readouterr().err


@pytest.mark.parametrize(("tick", "day"), [(1e-300, 1.0), (1e300, 1e300), (1.0, 1e-300)])
def test_any_tick_and_any_day(tick: float, day: float, tmp_path: Path) -> None:
    path = logs(tmp_path)["openai"]
    try:
        _, calls = read_log(path, "auto", tick)
        characterise(calls, "log", "openai", day)
    except ConfigError as error:
        assert "--tick" in str(error) or "day" in str(error)


def test_what_a_log_says_reaches_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names are shown, not obeyed: neither by rich nor by the terminal."""
    path = tmp_path / "[bold]log[x].jsonl"
    path.write_text("".join(
        json.dumps({"user": f"u{n % 2}", "step": n, "prompt": f"{n} and on",
                    "template": "[/]\x1b[2J"}) + "\n" for n in range(6)
    ))  # fmt: skip
    assert main(["profile", str(path), "--out", str(tmp_path / "p.html")]) == 0
    said = capsys.readouterr().out
    assert "[/]" in said and "[bold]log[x]" in said and "\x1b[2J" not in said
    path.write_text('{"user": "u", "time": "\x1b"}\n')
    assert main(["profile", str(path), "--out", str(tmp_path / "p.html")]) == 2
    assert "\x1b" not in capsys.readouterr().err
