"""The demo's timeline, in Chrome's trace format, which Perfetto opens: a process a policy, with its
rounds, its copies in and out, and how full the device pool is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from scalesim.cli.watch import DemoLog, LinkSample

_ROUNDS, _IN, _OUT = 1, 2, 3
_LANES = {_ROUNDS: "compute: rounds", _IN: "copies in", _OUT: "copies out"}
TraceEvent = dict[str, Any]


def write_timeline(log: DemoLog, page_bytes: int, path: Path) -> None:
    """Write the events of a log as JSON. Raises ``OSError``."""
    trace = {"displayTimeUnit": "ms", "traceEvents": list(events(log, page_bytes))}
    path.write_text(json.dumps(trace), encoding="utf-8")


def events(log: DemoLog, page_bytes: int) -> Iterator[TraceEvent]:
    """The names of processes and lanes, then spans and counters; times are in microseconds."""
    policies = list(dict.fromkeys(span.policy for span in log.rounds))
    for process, policy in enumerate(policies, 1):
        yield _named(process, 0, "process_name", policy)
        for lane, name in _LANES.items():
            yield _named(process, lane, "thread_name", name)
        for span in log.rounds:
            if span.policy == policy:
                args = {"tick": span.tick, "asked": len(span.asked)}
                name = f"tick {span.tick}"
                yield _span(process, _ROUNDS, name, span.begin_s, span.end_s, args)
        samples = [sample for sample in log.samples if sample.policy == policy]
        yield from _copies(process, samples, page_bytes)
        for sample in samples:
            yield _counter(process, "device pool, pages", sample.at_s, sample.device_pages)
            yield _counter(process, "waits for the link, bytes in", sample.at_s, sample.queued_in)
            yield _counter(process, "waits for the link, bytes out", sample.at_s, sample.queued_out)


def _copies(process: int, samples: list[LinkSample], page_bytes: int) -> Iterator[TraceEvent]:
    """A span for each time between two samples in which pages moved."""
    for before, after in pairwise(samples):
        for lane, pages in (
            (_IN, after.loaded_pages - before.loaded_pages),
            (_OUT, after.saved_pages - before.saved_pages),
        ):
            if pages > 0:
                args = {"pages": pages, "bytes": pages * page_bytes}
                yield _span(process, lane, f"{pages} pages", before.at_s, after.at_s, args)


def _named(process: int, lane: int, what: str, name: str) -> TraceEvent:
    return {"ph": "M", "pid": process, "tid": lane, "name": what, "args": {"name": name}}


def _span(
    process: int, lane: int, name: str, begin: float, end: float, args: TraceEvent
) -> TraceEvent:
    times = {"ts": begin * 1e6, "dur": (end - begin) * 1e6}
    return {"ph": "X", "pid": process, "tid": lane, "name": name, **times, "args": args}


def _counter(process: int, name: str, at: float, value: float) -> TraceEvent:
    return {"ph": "C", "pid": process, "name": name, "ts": at * 1e6, "args": {"value": value}}
