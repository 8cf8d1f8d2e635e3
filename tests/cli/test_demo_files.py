"""What the demo writes: the report is one whole page, the timeline a trace that adds up, the
picture what a terminal shows. Chromium draws them, where there is one."""

from __future__ import annotations

import json
import re
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from scalesim.cli import main
from scalesim.village.people import FIRST
from tests.cli.chromium import CHROMIUM, drawn

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is found")
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
    report, timeline, picture = folder / "out.html", folder / "trace.json", folder / "demo.svg"
    line = "demo --agents 12 --resident 3 --ticks 5 --policies deadline lru-swap resident"
    files = [
        "--report", str(report), "--timeline", str(timeline), "--picture", str(picture),
    ]  # fmt: skip
    assert main([*line.split(), "--model", str(village_model), *files]) == 0
    trace = json.loads(timeline.read_text())
    return {"folder": folder, "page": report.read_text(), "trace": trace}


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


_DRAWN = """(() => {
  const all = (what) => [...document.querySelectorAll(what)];
  const box = (each) => each.getBoundingClientRect().toJSON();
  return {
    page: [document.documentElement.scrollWidth, innerWidth],
    charts: all("svg").map(box),
    outside: all("rect").filter((bar) => {
      const inner = box(bar), outer = box(bar.closest("svg"));
      return inner.left < outer.left - 1 || inner.right > outer.right + 1
        || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
    }).length,
    fills: Object.fromEntries(
      all("rect").map((bar) => [bar.className.baseVal, getComputedStyle(bar).fill])),
    keys: Object.fromEntries(all(".key span").map(
      (mark) => [mark.nextSibling.textContent, getComputedStyle(mark).backgroundColor])),
  };
})()"""


@needs_chromium
@pytest.mark.parametrize("width", [500, 1100])
def test_a_browser_draws_the_report(written: dict[str, Any], width: int, tmp_path: Path) -> None:
    """No message on the console, no page wider than the window, every bar within its chart, and
    the colours are those of the keys."""
    found = drawn(written["folder"] / "out.html", _DRAWN, tmp_path, width)
    page_width, window_width = found["page"]
    assert page_width <= window_width == width
    assert len(found["charts"]) == 2 * 3 + 2  # residency and latency of each; two used the link
    assert all(box["width"] > 0.8 * width and box["height"] > 15 for box in found["charts"])
    assert found["outside"] == 0
    assert {"device", "host", "asked", "in"} <= set(found["fills"])
    assert len(set(found["fills"].values())) == len(found["fills"]) > 3
    assert found["fills"].items() <= found["keys"].items()


@needs_chromium
def test_a_browser_draws_the_picture(written: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    address = (written["folder"] / "demo.svg").as_uri()
    page.write_text(f"<!doctype html><link rel=icon href='data:,'><img src='{address}'>")
    width, height = drawn(
        page,
        "(({naturalWidth, naturalHeight}) => [naturalWidth, naturalHeight])"
        "(document.querySelector('img'))",
        tmp_path,
    )
    assert width > height > 100


def test_the_picture_has_the_village_the_strips_and_the_verdict(written: dict[str, Any]) -> None:
    picture = (written["folder"] / "demo.svg").read_text()
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "").replace(
        "https://www.textualize.io", ""
    )
    shown = unescape(re.sub(r"<[^>]+>", "", picture)).replace("\xa0", " ")
    for words in ("mill", "what they say", "next to speak first", "deadline", "Verdict:", "█"):
        assert words in shown, words
    assert "…" not in shown


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
    played = {pid: [s for s in rounds if s["pid"] == pid] for pid in names.values()}
    for span in spans:  # nothing is copied for those whose round it is not
        assert any(
            turn["ts"] - 1 <= span["ts"] and span["ts"] + span["dur"] <= ends(turn) + 1
            for turn in played[span["pid"]]
        )


def ends(span: dict[str, Any]) -> float:
    return float(span["ts"] + span["dur"])


def test_the_timeline_is_a_trace_that_viewers_read(written: dict[str, Any]) -> None:
    """The rules of Chrome's trace format: what each kind of event must have, each lane named, spans
    of a lane side by side, and numbers as counters."""
    trace = written["trace"]
    assert set(trace) == {"traceEvents", "displayTimeUnit"} and trace["displayTimeUnit"] == "ms"
    lanes: dict[tuple[int, int], list[dict[str, Any]]] = {}
    named: set[tuple[int, int]] = set()
    for event in trace["traceEvents"]:
        assert isinstance(event["pid"], int) and isinstance(event["name"], str) and event["name"]
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and event["args"]["name"]
            named.add((event["pid"], event["tid"]))
        elif event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0 and isinstance(event["args"], dict)
            lanes.setdefault((event["pid"], event["tid"]), []).append(event)
        else:
            assert event["ph"] == "C" and event["ts"] >= 0
            assert all(isinstance(value, int) and value >= 0 for value in event["args"].values())
    assert lanes and lanes.keys() <= named
    for spans in lanes.values():
        spans.sort(key=lambda span: span["ts"])
        assert all(ends(before) <= after["ts"] + 1e-3 for before, after in pairwise(spans))


def test_a_file_that_cannot_be_written_is_refused_first(
    village_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--report", "--timeline", "--picture"):
        line = ["demo", "--model", str(village_model), option, str(tmp_path / "no" / "file")]
        assert main(line) == 2
        caught = capsys.readouterr()
        assert caught.err.startswith(f"scalesim: error: {option} ") and caught.out == ""
