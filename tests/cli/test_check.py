"""``scalesim check``: what is right passes; what is wrong on purpose is caught, repeatably."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalesim.cli import main
from scalesim.core import Bytes2D
from scalesim.memory.eviction.policies import Policy
from scalesim.memory.links.link import Timeline
from scalesim.testing.hostile_link import HostileLink

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


class EarlyLink(HostileLink):
    """Says that a copy has ended when it has not begun."""

    def poll(self) -> list[tuple[int, Exception | None]]:
        started = [copy.ticket for copy in self._open if not copy.started]
        early: list[tuple[int, Exception | None]] = [(ticket, None) for ticket in started[:1]]
        self._open = [copy for copy in self._open if copy.ticket not in started[:1]]
        return super().poll() + early


def early(device: Bytes2D, host: Bytes2D, timeline: Timeline, seed: int) -> EarlyLink:
    return EarlyLink(device, host, timeline, seed=seed)


def patient(device: Bytes2D, host: Bytes2D, timeline: Timeline, seed: int) -> HostileLink:
    return HostileLink(device, host, timeline, seed=seed, max_ticket_pages=3)


OLDEST_FIRST = Policy("oldest-first", order="last_use", host=True, look_ahead=True)


def test_the_example_that_is_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(EXAMPLES)
    assert main(["check", "allocator", "my_pool:StackPool", "--walks", "12"]) == 0
    said = capsys.readouterr().out
    assert "12 walks, 2412 operations" in said and "nothing found" in said


def test_the_example_that_is_wrong_on_purpose_is_caught(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(EXAMPLES)
    assert main(["check", "allocator", "my_pool:ForgetfulPool"]) == 1
    said = capsys.readouterr().out
    assert "failed:" in said and "after these operations" in said
    again = said.strip().splitlines()[-1].split("scalesim ", 1)[1].split()
    assert main(again) == 1  # the line that it prints repeats it
    assert capsys.readouterr().out == said.replace(said.split("walk ", 1)[1].split(" ")[0], "1", 1)


def test_a_link_that_lies_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    here = __name__
    assert main(["check", "link", f"{here}:early", "--walks", "12"]) == 1
    assert "failed:" in capsys.readouterr().out
    assert main(["check", "link", f"{here}:patient", "--walks", "6"]) == 0


def test_a_policy_of_ones_own() -> None:
    assert main(["check", "policy", f"{__name__}:OLDEST_FIRST", "--walks", "6"]) == 0


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["allocator", "my_pool"], "names no object"),
        (["allocator", "no_such_module_anywhere:Pool"], "cannot be imported"),
        (["allocator", f"{__name__}:Nothing"], "cannot be imported"),
        (["allocator", f"{__name__}:OLDEST_FIRST"], "give a class"),
        (["policy", f"{__name__}:EXAMPLES"], "must be a memory.policies.Policy"),
        (["link", f"{__name__}:early", "--walks", "0"], "at least 1"),
    ],
)
def test_mistakes_name_the_rule(
    args: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *args]) == 2
    assert word in capsys.readouterr().err
