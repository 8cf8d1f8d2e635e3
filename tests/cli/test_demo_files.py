"""What the demo writes: the report is one whole page, the timeline a trace that adds up."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from scalesim.cli import main
from scalesim.village.people import FIRST

VOID = {"meta", "rect", "br"}


class Tags(HTMLParser):
    """The tags of a page, which must be closed in order, and what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: Counter[str] = Counter()
        self.classes: Counter[str] = Counter()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.classes.update(value for name, value in attrs if name == "class" and value)
        self.links += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        while self.open and self.open[-1] in ("td", "th") and tag != self.open[-1]:
            self.open.pop()  # may be left open
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(village_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("files")
    report, timeline = folder / "out.html", folder / "trace.json"
    line = "demo --agents 12 --resident 3 --ticks 5 --policies deadline lru-swap resident"
    files = ["--report", str(report), "--timeline", str(timeline)]
    assert main([*line.split(), "--model", str(village_model), *files]) == 0
    return {"page": report.read_text(), "trace": json.loads(timeline.read_text())}


def test_the_report_is_one_whole_page(written: dict[str, Any]) -> None:
    page = written["page"]
    tags = Tags()
    tags.feed(page)
    assert tags.open == [] and tags.links == [] and "url(" not in page
    assert "<script" not in page and "@import" not in page
    for heading in ("What each policy took", "Where each agent", "The link", "Latency", "said"):
        assert heading in page
    for policy in ("deadline", "lru-swap", "resident"):
        assert page.count(f"<h3>{policy}<") == 3
    assert {"device", "host", "in"} <= set(tags.classes)
    assert "Verdict:" in page and "[bold]" not in page
    assert any(re.search(rf"<b>{name} \w+</b>", page) for name in FIRST)


def test_links_are_drawn_to_one_scale(written: dict[str, Any]) -> None:
    section = written["page"].partition("<h2>The link</h2>")[2].partition("<h2>")[0]
    tallest: dict[str, float] = {}
    most: dict[str, float] = {}
    for chart in section.split("<h3>")[1:]:
        heights = re.findall(r"<rect class=(?:in|out) [^>]*height=([\d.]+)", chart)
        if found := re.search(r"at most ([\d.]+) (\w+)", chart):
            unit = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}[found[2]]
            policy = chart.partition("<")[0]
            most[policy] = float(found[1]) * unit
            tallest[policy] = max(map(float, heights))
    assert set(most) == {"deadline", "lru-swap"}
    assert max(tallest.values()) == pytest.approx(30)  # half of a chart
    for policy, num_bytes in most.items():
        share = num_bytes / max(most.values())
        assert tallest[policy] == pytest.approx(30 * share, rel=0.15, abs=0.2)


def test_the_timeline_adds_up(written: dict[str, Any]) -> None:
    events = written["trace"]["traceEvents"]
    names = {
        event["args"]["name"]: event["pid"] for event in events if event["name"] == "process_name"
    }
    assert set(names) == {"deadline", "lru-swap", "resident"}
    spans = [event for event in events if event["ph"] == "X"]
    assert all(span["ts"] >= 0 and span["dur"] >= 0 for span in spans)
    rounds = sorted((s for s in spans if s["tid"] == 1), key=lambda span: span["ts"])
    for before, after in pairwise(rounds):
        assert before["ts"] + before["dur"] <= after["ts"]  # the policies take turns
    asked = Counter[int]()
    for span in rounds:
        asked[span["pid"]] += span["args"]["asked"]
    assert len(set(asked.values())) == 1 and asked[names["deadline"]] > 5
    copied = {span["pid"] for span in spans if span["tid"] == 2}
    assert names["deadline"] in copied and names["resident"] not in copied
    assert all(span["args"]["bytes"] > 0 for span in spans if span["tid"] != 1)


def test_a_file_that_cannot_be_written_is_refused_first(
    village_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--report", "--timeline"):
        line = ["demo", "--model", str(village_model), option, str(tmp_path / "no" / "file")]
        assert main(line) == 2
        caught = capsys.readouterr()
        assert caught.err.startswith(f"scalesim: error: {option} ") and caught.out == ""
