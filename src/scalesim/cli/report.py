"""The demo's report: one page of HTML that needs nothing else, with charts as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

from scalesim.cli.play import PlayScore, Said
from scalesim.cli.table import COLUMNS, amount, cells
from scalesim.cli.watch import DemoLog, LinkSample, RoundSpan
from scalesim.village.actions import read_action

_STATES = ("device", "coming", "host", "nowhere")
_WIDTH = 1000
_CELL = 6  # height of an agent's row
_MARK = 3  # width of the mark of an agent that was asked
_BINS = 24  # of latencies
_STYLE = """
:root { color-scheme: light dark; --text: #1d2733; --dim: #66727f; --back: #fdfdfb;
  --panel: #f1f2ee; --device: #3a9a66; --coming: #e0a52e; --host: #bccfe3; --nowhere: #e3e5e0;
  --asked: #12201a; --in: #2f6f9f; --out: #b5693a }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --dim: #98a3ae; --back: #14181d;
  --panel: #1d232a; --host: #2d445c; --nowhere: #262c33; --asked: #f4f7f5 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 1040px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem }
h3 { font-size: .95rem; margin: .9rem 0 .2rem } p { margin: .4rem 0 } .dim { color: var(--dim) }
.verdict { background: var(--panel); border-left: 4px solid var(--device); padding: .7rem 1rem;
  margin: 1.2rem 0 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--panel);
  white-space: nowrap }
td:first-child, th:first-child { text-align: left } th { color: var(--dim); font-weight: 500 }
svg { display: block; width: 100%; background: var(--panel); border-radius: 4px }
.device { fill: var(--device) } .coming { fill: var(--coming) } .host { fill: var(--host) }
.nowhere { fill: var(--nowhere) } .asked { fill: var(--asked) }
.in { fill: var(--in) } .out { fill: var(--out) }
.key span { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin: 0 .3em 0 1em } .key span:first-child { margin-left: 0 }
.wide { overflow-x: auto } .talk { columns: 2 20rem; column-gap: 2rem }
.talk p { break-inside: avoid; margin: 0 0 .5rem }
.talk b { font-weight: 600 } h3 .dim { font-weight: 400; margin-left: .6em }
"""


def write_report(
    path: Path,
    introduction: str,
    verdict: str,
    scores: Sequence[PlayScore],
    log: DemoLog,
    said: Sequence[Said],
) -> None:
    """Write the page. Raises ``OSError``."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'><title>ScaleSim: the village</title>",
        f"<style>{_STYLE}</style><h1>The village</h1><p class=dim>{escape(introduction)}</p>",
        f"<p class=verdict>{escape(verdict)}</p>",
        "<h2>What each policy took</h2>", _table(scores),
        "<h2>Where each agent's state lay</h2>",
        "<p class=dim>A row an agent, a column a round; the wider, the longer the round took. "
        "An agent that was asked in a round has a mark at the beginning of it.</p>",
        _key((*_STATES, "asked")), *(_heat_map(score.policy, log) for score in scores),
        "<h2>The link</h2><p class=dim>What moved in each round; one scale for all policies.</p>",
        _key(("in", "out")), *_links(scores, log),
        "<h2>Loads ahead of time</h2>", _prefetches(scores),
        "<h2>Latency of a call</h2><p class=dim>Seconds from its submission to its end.</p>",
        *_latencies(scores),
        "<h2>What they said</h2><div class=talk>", *map(_line, said), "</div></html>",
    ]  # fmt: skip
    path.write_text("\n".join(parts), encoding="utf-8")


def _table(scores: Sequence[PlayScore]) -> str:
    names = [name.replace("-\n", "").replace("\n", " ") for name in COLUMNS]  # on one line each
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells(score, scores))}</tr>"
        for score in scores
    )
    return f"<div class=wide><table><tr>{head}</tr>{rows}</table></div>"


def _key(names: Sequence[str]) -> str:
    marks = "".join(f"<span style='background:var(--{name})'></span>{name}" for name in names)
    return f"<p class='key dim'>{marks}</p>"


def _heat_map(policy: str, log: DemoLog) -> str:
    """Agents by time, with marks where they were asked; neighbours of a row that are alike are one
    rectangle."""
    spans = [span for span in log.rounds if span.policy == policy]
    if not spans:
        return ""
    edges = _edges(spans)
    num_agents = len(spans[0].states)
    drawn = []
    for agent in range(num_agents):
        start = 0
        for column in range(1, len(spans) + 1):
            state = spans[start].states[agent]
            if column == len(spans) or spans[column].states[agent] != state:
                x, width = edges[start], edges[column] - edges[start]
                drawn.append(
                    f"<rect class={state} x={x:.1f} y={agent * _CELL} width={width:.1f} "
                    f"height={_CELL - 1} />"
                )
                start = column
    drawn += [
        f"<rect class=asked x={x:.1f} y={agent * _CELL} width={_MARK} height={_CELL - 1} />"
        for x, span in zip(edges, spans, strict=False)  # the last edge begins none
        for agent in span.asked
    ]
    return f"{_heading(policy)}{_svg(num_agents * _CELL, drawn)}"


def _edges(spans: Sequence[RoundSpan]) -> list[float]:
    """Where each round's column begins, and where the last ends."""
    total = sum(span.end_s - span.begin_s for span in spans)
    edges = [0.0]
    for span in spans:
        edges.append(edges[-1] + (span.end_s - span.begin_s) / total * _WIDTH)
    return edges


def _links(scores: Sequence[PlayScore], log: DemoLog) -> Iterator[str]:
    """A chart for each policy; all have one scale, so that their bars can be compared."""
    moved: dict[str, list[tuple[RoundSpan, tuple[int, int]]]] = {}
    for score in scores:
        samples = [sample for sample in log.samples if sample.policy == score.policy]
        spans = [span for span in log.rounds if span.policy == score.policy]
        moved[score.policy] = [(span, _moved(span, samples, score.page_bytes)) for span in spans]
    tallest = max((max(pair) for rounds in moved.values() for _, pair in rounds), default=0)
    for policy, rounds in moved.items():
        yield _link(policy, rounds, tallest)


def _link(policy: str, rounds: Sequence[tuple[RoundSpan, tuple[int, int]]], tallest: int) -> str:
    """Bars of what moved in each round: in above the line, out below. ``tallest`` is the number of
    bytes that fills half of the chart."""
    spans, moved = [span for span, _ in rounds], [pair for _, pair in rounds]
    most = max((max(pair) for pair in moved), default=0)
    if not most:
        return _heading(policy, "nothing moved")
    height, drawn = 60, []
    for (x, end), (loaded, saved) in zip(pairwise(_edges(spans)), moved, strict=True):
        for name, num_bytes, sign in (("in", loaded, -1), ("out", saved, 1)):
            size = num_bytes / tallest * height / 2
            top = height / 2 + (sign < 0) * -size
            drawn.append(
                f"<rect class={name} x={x:.1f} y={top:.1f} width={max(end - x - 0.5, 0.5):.1f} "
                f"height={size:.1f} />"
            )
    return f"{_heading(policy, f'at most {amount(most)}')}{_svg(height, drawn)}"


def _moved(span: RoundSpan, samples: Sequence[LinkSample], page_bytes: int) -> tuple[int, int]:
    """Bytes loaded and saved in a round."""
    inside = [sample for sample in samples if span.begin_s <= sample.at_s <= span.end_s]
    if not inside:
        return 0, 0
    first, last = inside[0], inside[-1]
    loaded, saved = last.loaded_pages - first.loaded_pages, last.saved_pages - first.saved_pages
    return loaded * page_bytes, saved * page_bytes


def _prefetches(scores: Sequence[PlayScore]) -> str:
    """Of the pages that were loaded before anybody asked: used, and wasted; and what was late."""
    rows = "".join(
        f"<tr><td>{escape(score.policy)}<td>{score.memory.prefetched_pages}"
        f"<td>{score.memory.prefetch_used}<td>{score.memory.late_blocks}"
        f"<td>{score.memory.prefetch_wasted}</tr>"
        for score in scores
    )
    head = "<tr><th>policy<th>pages loaded ahead<th>used<th>still on their way<th>wasted</tr>"
    return f"<div class=wide><table>{head}{rows}</table></div>"


def _latencies(scores: Sequence[PlayScore]) -> Iterator[str]:
    most = max((max(score.latency_s, default=0.0) for score in scores), default=0.0) or 1.0
    for score in scores:
        counts = [0] * _BINS
        for seconds in score.latency_s:
            counts[min(int(seconds / most * _BINS), _BINS - 1)] += 1
        height, width = 60, _WIDTH / _BINS
        tallest = max(counts) or 1
        drawn = [
            f"<rect class=device x={index * width:.1f} y={height - count / tallest * 50:.1f} "
            f"width={width - 1:.1f} height={count / tallest * 50:.1f} />"
            for index, count in enumerate(counts)
        ]
        found = (
            f"p50 {score.latency_at(0.5):.2f} s, p95 {score.latency_at(0.95):.2f} s; "
            f"the axis ends at {most:.2f} s"
        )
        yield f"{_heading(score.policy, found)}{_svg(height, drawn)}"


def _heading(policy: str, note: str = "") -> str:
    return f"<h3>{escape(policy)}<span class=dim>{escape(note)}</span></h3>"


def _svg(height: float, drawn: Sequence[str]) -> str:
    return f"<svg viewBox='0 0 {_WIDTH} {height}' preserveAspectRatio=none>{''.join(drawn)}</svg>"


def _line(said: Said) -> str:
    action = read_action(said.text)
    text = (
        escape(said.text)
        if action is None
        else f"<i>goes to the {action.place.name} to {escape(action.task)}</i>"
    )
    return f"<p><b>{escape(said.who)}</b> {text}</p>"
