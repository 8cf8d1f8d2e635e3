"""``scalesim demo``, small: the table, the check that it makes, and how it is interrupted.

The model is tiny and random, with the village's tokens: what it says is noise, but JSON actions are
held to their schema.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scalesim.cli import capacity, main, play
from scalesim.cli.options import DemoOptions
from scalesim.cli.play import Play, PlayScore, Said, play_tick
from scalesim.cli.same_texts import first_difference
from scalesim.cli.screen import Screen
from scalesim.cli.stage import Stage
from scalesim.cli.table import amount, cells
from scalesim.engine.stats import EngineStats
from scalesim.memory.counters import Counters
from scalesim.requests.reply import Reply
from scalesim.village.actions import read_action
from scalesim.village.world import Question
from tests.cli.conftest import TINY
from tests.model.adapter_folders import write_adapter

SMALL = "demo --agents 12 --resident 3 --ticks 2".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def _columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def small(model: Path, *words: str) -> list[str]:
    return [*SMALL, "--model", str(model), *words]


def two(model: Path) -> list[str]:
    return small(model, "--policies", "deadline", "lru-swap")


def test_table_verdict_and_same_texts(
    village_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(two(village_model)) == 0
    shown = capsys.readouterr().out
    rows = re.findall(r"^ +(deadline|lru-swap) +([\d.]+) .* (\d+)% +\d+ *$", shown, re.MULTILINE)
    assert [row[0] for row in rows] == ["deadline", "lru-swap"]
    assert all(float(row[1]) > 0 for row in rows), shown
    verdict = " ".join(shown[shown.index("Verdict:") :].split())
    assert f"{rows[0][2]}% of its calls waited" in verdict, verdict
    assert f"against {rows[1][2]}% of lru-swap's" in verdict, verdict
    said = re.search(r"same texts: all (\d+) texts.*2 policies \(([0-9a-f]{16})\)", shown)
    assert said is not None and int(said[1]) > 12, shown
    assert "100% of the actions were valid" in shown


def test_every_policy_runs_by_default_and_the_link_is_paced(
    village_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small(village_model, "--link", "0.1")) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "under 5 policies" in shown and "as fast as with room for everyone" in shown
    assert re.search(r"slowed to \d+ MB/s: .* over 10% of the link of a h100", shown), shown


def test_the_arms_take_each_round_in_turn(
    village_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what else the machine does meets all of them: none is a round ahead."""
    played: dict[str, int] = dict.fromkeys(("deadline", "lru-swap", "resident"), 0)
    original = play.Play.round

    def counted(self: Play) -> bool:
        played[self.policy] += 1
        assert max(played.values()) - min(played.values()) <= 1
        return original(self)

    monkeypatch.setattr(play.Play, "round", counted)
    assert main(small(village_model, "--policies", *played)) == 0
    assert min(played.values()) == max(played.values()) > 2


def test_an_arm_stands_still_while_others_play(
    village_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing computes or copies for it, and its clock stands still: what it has begun to load
    waits for its next round."""
    left: dict[str, tuple[int, float, dict[str, int]]] = {}
    plays: list[Play] = []
    original, opened = play.Play.round, Play.__init__

    def stands(self: Play) -> tuple[int, float, dict[str, int]]:
        engine = self.engine
        return engine.stats.steps, engine.parts.time_s(), engine.memory.queued_bytes

    def remembered(self: Play, *given: Any) -> None:
        opened(self, *given)
        plays.append(self)

    def checked(self: Play) -> bool:
        for each in plays:
            assert left.setdefault(each.policy, stands(each)) == stands(each)
        goes_on = original(self)
        left[self.policy] = stands(self)
        queued.append(sum(left[self.policy][2].values()))
        return goes_on

    queued: list[int] = []
    monkeypatch.setattr(play.Play, "__init__", remembered)
    monkeypatch.setattr(play.Play, "round", checked)
    line = small(village_model, "--link", "0.003", "--policies", "deadline", "lru-swap")
    assert main(line) == 0
    assert max(queued) > 0, "no copy was under way between two rounds"


def test_capacity_is_the_last_village_before_the_latency_doubles(
    village_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A policy whose latency has doubled plays no larger village."""
    played: list[tuple[str, int]] = []
    costs = {"lru-recompute": (1.0, 2.1), "deadline": (1.0, 1.1, 1.9), "lru-swap": (1.0, 1.5, 2.1)}

    def latency(self: PlayScore, share: float) -> float:
        mine = [people for policy, people in played if policy == self.policy]
        return costs[self.policy][len(mine) - 1]

    original = capacity.live

    def live(stage: Stage, policies: list[str]) -> list[Play]:
        played.extend((policy, stage.agents) for policy in policies)
        return original(stage, policies)

    monkeypatch.setattr(capacity, "FEWEST_CALLS", 4)
    monkeypatch.setattr(PlayScore, "latency_at", latency)
    monkeypatch.setattr(capacity, "live", live)
    assert main([*small(village_model, "--capacity", "15", "--policies", *costs)]) == 0
    assert played == [
        *((policy, people) for people in (3, 6) for policy in costs),
        ("deadline", 12), ("lru-swap", 12),
    ]  # fmt: skip
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("same texts") == 3
    assert (
        "3 people under lru-recompute, 12+ people under deadline, 6 people under lru-swap" in shown
    )


def test_a_policy_is_compared_round_by_round() -> None:
    """A slow minute of the machine changes the median of few rounds."""
    slow = PlayScore("lru-recompute", EngineStats(), Counters(), 1, (2.0, 4.0, 90.0, 6.0, 2.0))
    fast = replace(slow, policy="deadline", round_s=(1.0, 2.0, 3.0, 3.0, 9.0))
    assert fast.times(slow) == 2.0 and slow.times(fast) == 0.5
    assert cells(fast, [fast, slow])[2:4] == ["2.00", ""]  # there is no arm with room for all
    assert cells(slow, [slow, replace(fast, policy="resident")])[2:4] == ["1.00", "0.50"]


def test_a_play_counts_its_rounds(village_model: Path) -> None:
    stage = Stage.build(DemoOptions(agents=12, resident=3, model=str(village_model)))
    with stage.play("resident") as village:
        for _ in village.opening():
            pass
        rounds = 0
        for _ in range(6):
            while village.round():
                rounds += 1
        assert len(village.score.round_s) == rounds > 3
        assert len(village.score.latency_s) == village.score.engine.calls > rounds


def test_it_is_read_at_80_columns_and_in_a_pipe(
    village_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(small(village_model)) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown and "\x1b" not in shown
    for word in ("Prefilled:", "latency", "compute", "waited", "tick 0 of 2, Monday", "goes to"):
        assert word in shown


def test_live_view_has_the_map_the_talk_and_a_strip_for_each_policy(village_model: Path) -> None:
    options = DemoOptions(
        agents=12, resident=3, model=str(village_model), policies=("deadline", "resident")
    )
    stage = Stage.build(options)
    console = Console(force_terminal=True, width=120, record=True, file=StringIO())
    with stage.play("deadline") as first, stage.play("resident") as second:
        with Screen(console, [first, second], 2) as screen:
            for each in (first, second):
                for _ in each.opening():
                    screen.opens(each)
                each.round()
                screen.played(each)
        shown = console.export_text()
    last = shown[shown.rindex("what they say") :]
    for word in ("mill", "chapel", "tavern", "deadline", "resident", "next to speak first"):
        assert word in last, word
    assert re.search(r"resident +█{12} ", last), last
    assert not re.search(r"deadline +█{12} ", last), last


def test_seed_changes_the_texts(village_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hashes = []
    for seed in ("0", "0", "1"):
        assert main(small(village_model, "--policies", "resident", "--seed", seed)) == 0
        found = re.search(r"\(([0-9a-f]{16})\)", capsys.readouterr().out)
        assert found is not None
        hashes.append(found[1])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("what", ["text", "logits"])
def test_planted_difference_is_found(
    village_model: Path,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = play.Play.ask

    def ask(self: Play, questions: list[Question]) -> list[Reply]:
        replies = original(self, questions)
        if self.policy == "lru-swap" and self.village.now == 0:
            changed = {"digest": 7} if what == "logits" else {"text": "Hi", "token_ids": (5, 6)}
            replies[0] = replace(replies[0], **changed)
        return replies

    monkeypatch.setattr(play.Play, "ask", ask)
    assert main(two(village_model)) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"DIFFERENT TEXTS: deadline \(\w+\) and lru-swap \(\w+\) part at tick 0,", shown
    )
    assert ("'Hi'" in shown) == (what == "text")
    assert "same texts" not in shown and "Verdict" not in shown


def test_people_are_asked_a_few_at_a_time_in_a_known_order(village_model: Path) -> None:
    """The engine's clock moves from group to group, whoever waits is expected at a time of its own,
    and whoever was asked when the village says; the texts do not change."""
    stage = Stage.build(DemoOptions(agents=12, resident=3, model=str(village_model)))
    asked: dict[float, list[float | None]] = {}  # by the clock: when they were expected
    told: dict[str, float] = {}
    clock = [0.0]
    with stage.play("resident") as all_at_once, stage.play("deadline", at_once=2) as in_pairs:
        for village in all_at_once, in_pairs:
            for _ in village.opening():
                pass
        engine = in_pairs.engine
        expect, submit, tick = engine.expect, engine.submit, engine.tick

        def ticked(*, to: float) -> None:
            clock.append(to)
            tick(to=to)

        def expected(next_uses: dict[str, float], *, absolute: bool) -> None:
            told.update(next_uses)
            expect(next_uses, absolute=absolute)

        def submitted(request: Any) -> Any:
            asked.setdefault(clock[-1], []).append(told.get(request.agent))
            return submit(request)

        engine.expect, engine.submit = expected, submitted  # type: ignore[method-assign,assignment]
        engine.tick = ticked  # type: ignore[method-assign,assignment]
        for _ in range(6):
            play_tick([all_at_once, in_pairs], Play.round)
        assert in_pairs.said == all_at_once.said
    assert clock == sorted(clock) and {len(due) for due in asked.values()} == {1, 2}
    later_groups = {now: due for now, due in asked.items() if abs(3 * now - round(3 * now)) > 1e-6}
    assert later_groups and all(due == [now] * len(due) for now, due in later_groups.items())


def test_a_missing_end_is_a_difference() -> None:
    one, two = Said(0, "Ada", "A", (65,), 1), Said(1, "Bob", "B", (66,), 2)
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
        ("--agents 1153", "--agents 1153 is more than the village has names for, 1152"),
        ("--threads 100000", "--threads: 100000 must be"),
        ("--capacity 5", "--capacity 5 is less than twice --resident 3"),
        ("--capacity 1153", "--capacity 1153 is more than the village has names for, 1152"),
        ("--capacity 6 --report x.html", "--report shows one village, --capacity has several"),
        ("--hardware abacus", "unknown hardware 'abacus'; there are: h100"),
        ("--link 0", "--link: 0 must be a share above 0 to 1"),
        ("--model no/such", "--model no/such has no config.json"),
    ],
)
def test_bad_options(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *options.split()]) == 2
    caught = capsys.readouterr()
    assert caught.err.startswith(f"scalesim: error: {message}") and caught.err.count("\n") == 1
    assert caught.out == ""


def test_interrupt_ends_cleanly(village_model: Path) -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may ignore it\n"
        "from scalesim.cli import main\n"
        f"sys.exit(main({small(village_model, '--ticks', '9999')}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "agents live in a village" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 130 and err.endswith("scalesim: interrupted\n"), err
    assert "Traceback" not in err


def test_the_own_model_speaks_english_and_acts(capsys: pytest.CaptureFixture[str]) -> None:
    """What comes with the package: its actions are valid without a schema, its sentences end."""
    stage = Stage.build(DemoOptions(agents=20, resident=20))
    with stage.play("resident") as village:
        for _ in village.opening():
            pass
        for _ in range(3):
            while village.round():
                pass
        said = village.said
    talk = [each.text for each in said if read_action(each.text) is None]
    assert talk and all(text[0].isupper() and text[-1] in ".!?" for text in talk), talk
    assert village.score.valid_actions == 1.0


def test_voices_are_adapters_that_change_the_texts(
    village_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "with voices"
    shutil.copytree(village_model, folder)
    line = [*SMALL, "--model", str(folder), "--policies", "deadline", "lru-recompute"]
    assert main([*line, "--voices"]) == 2
    assert "has no adapters in a folder voices" in capsys.readouterr().err
    for index, rank in enumerate((4, 8)):
        write_adapter(folder / "voices" / f"voice {index}", TINY, rank, seed=index)
    hashes = []
    for words in ([], ["--voices"]):
        assert main([*line, *words]) == 0
        shown = capsys.readouterr().out
        assert ("2 adapters give" in " ".join(shown.split())) == bool(words)
        found = re.search(r"\(([0-9a-f]{16})\)", shown)
        assert found is not None
        hashes.append(found[1])
    assert hashes[0] != hashes[1]


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
