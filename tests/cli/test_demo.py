"""``scalesim demo``, small: the table, the check that it makes, and how it is interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from scalesim.cli.world import Utterance

from scalesim.cli import main, play
from scalesim.cli.demo import first_difference
from scalesim.cli.play import Said
from scalesim.cli.table import amount
from scalesim.requests.reply import Reply

SMALL = "demo --agents 12 --resident 3 --ticks 4 --model tiny".split()  # noqa: SIM905
TWO = (*SMALL, "--policies", "deadline", "lru-swap")


@pytest.fixture(autouse=True)
def _own_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")


def test_table_and_same_texts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(TWO) == 0
    shown = capsys.readouterr().out
    rows = re.findall(r"^ +(deadline|lru-swap) +(\d+)% +(\d+) .* ([\d.]+) *$", shown, re.MULTILINE)
    assert [row[0] for row in rows] == ["deadline", "lru-swap"]
    assert all(int(row[2]) > 0 and float(row[3]) > 0 for row in rows), shown
    last = " ".join(shown[shown.index("Shown:") :].split())
    for name, hits, _, _ in rows:
        assert re.search(rf"{name} (found )?{hits}%", last), last
    said = re.search(r"same texts: all (\d+) utterances.*2 policies \(([0-9a-f]{16})\)", shown)
    assert said is not None and int(said[1]) > 0, shown
    assert list(tmp_path.iterdir()) == []  # the model went with the run


def test_every_policy_runs_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    shown = capsys.readouterr().out
    assert "under 4 policies" in shown and "resident" in shown


def test_the_arms_take_each_round_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what else the machine does meets all of them: none is a round ahead."""
    played: dict[str, int] = dict.fromkeys(("deadline", "lru-swap", "resident"), 0)
    original = play.Play.round

    def counted(self: play.Play) -> bool:
        played[self.policy] += 1
        assert max(played.values()) - min(played.values()) <= 1
        return original(self)

    monkeypatch.setattr(play.Play, "round", counted)
    assert main([*SMALL, "--policies", *played]) == 0
    assert min(played.values()) == max(played.values()) > 4


def test_it_is_read_at_80_columns_and_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(SMALL) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown and "\x1b" not in shown
    for word in ("prefilled", "CPU ms", "demand", "warm-up", "tick 4 of 4", "Shown:"):
        assert word in shown


def test_seed_changes_the_texts(capsys: pytest.CaptureFixture[str]) -> None:
    hashes = []
    for seed in ("0", "0", "1"):
        assert main([*SMALL, "--policies", "resident", "--seed", seed]) == 0
        found = re.search(r"\(([0-9a-f]{16})\)", capsys.readouterr().out)
        assert found is not None
        hashes.append(found[1])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("what", ["text", "logits"])
def test_planted_difference_is_found(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = play.Play.ask

    def ask(self: play.Play, utterances: list[Utterance], max_tokens: int) -> list[Reply]:
        replies = original(self, utterances, max_tokens)
        if self.policy == "lru-swap" and self.world.now == 2:
            changed = {"digest": 7} if what == "logits" else {"token_ids": (72, 105)}
            replies[0] = replace(replies[0], **changed)
        return replies

    monkeypatch.setattr(play.Play, "ask", ask)
    assert main(TWO) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"DIFFERENT TEXTS: deadline \(\w+\) and lru-swap \(\w+\) part at tick 2,", shown
    )
    assert ("'Hi'" in shown) == (what == "text")
    assert "same texts" not in shown


def test_a_missing_end_is_a_difference() -> None:
    one, two = Said(0, "Ada", (65,), 1), Said(1, "Bob", (66,), 2)
    assert first_difference({"a": [one, two], "b": [one, two]}) is None
    found = first_difference({"a": [one, two], "b": [one]})
    assert found is not None and found.endswith(
        "tick 1, Bob: 'B' (logits 0000000000000002) and the end"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--ticks 0", "--ticks: 0 must be a whole number, at least 1"),
        ("--resident 13", "--resident 13 is more than --agents 12"),
        ("--policies deadline best", "unknown policy 'best'; policy must be one of: deadline"),
        ("--policies deadline deadline", "--policies names deadline twice"),
        ("--policies", "--policies names none"),
        ("--policies oracle", "policy='oracle' must know what comes"),
        ("--agents 1000001", "--agents: 1000001 must be"),
        ("--threads 100000", "--threads: 100000 must be"),
    ],
)
def test_bad_options(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *options.split()]) == 2
    caught = capsys.readouterr()
    assert caught.err.startswith(f"scalesim: error: {message}") and caught.err.count("\n") == 1
    assert caught.out == ""


def test_interrupt_ends_cleanly(tmp_path: Path) -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may ignore it\n"
        "from scalesim.cli import main\n"
        f"sys.exit(main({[*SMALL, '--ticks', '9999']}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "agents in a small world" in process.stdout.readline()  # the model is made
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    assert (process.returncode, err) == (130, "scalesim: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_amounts_are_readable() -> None:
    amounts = [0, 1500, 12_345, 2_500_000, 447e6, 1.0935e9, 2e12]
    assert [amount(each) for each in amounts] == [
        "0.0 B",
        "1.5 kB",
        "12 kB",
        "2.5 MB",
        "447 MB",
        "1.09 GB",
        "2000.00 GB",
    ]
