"""Metrics: what the server and its engine count, for Prometheus.

Nothing is labelled by agent, key or request: the series are as many with one agent as with a
million. What the engine counts is read when it is scraped, and costs nothing between.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from scalesim._version import __version__
from scalesim.engine.engine import Engine
from scalesim.engine.stats import EngineStats
from scalesim.server.identity import Identity
from scalesim.server.queue import OpenRequests

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
)  # fmt: skip
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody reads
_RECENT = 512  # requests that the page's quantiles are of

_COUNTERS: tuple[tuple[str, str, str], ...] = (  # name, field of EngineStats, help
    ("scalesim_calls", "calls", "Calls that gave a reply."),
    ("scalesim_calls_failed", "failed", "Calls that ended with an error."),
    ("scalesim_prompt_tokens", "prompt_tokens", "Tokens of prompts."),
    ("scalesim_cached_tokens", "cached_tokens", "Tokens of prompts that were found in memory."),
    ("scalesim_generated_tokens", "output_tokens", "Tokens that were generated."),
    ("scalesim_steps", "steps", "Steps of the engine."),
    ("scalesim_compute_seconds", "compute_s", "Seconds in which the model computed."),
    ("scalesim_lookups", "lookups", "Look-ups of prompts in memory."),
    ("scalesim_hits", "hits", "Look-ups that found something and waited for none of it."),
    ("scalesim_demand_loads", "waits", "Loads that a request waited for."),
    ("scalesim_stall_seconds", "wait_s", "Seconds in which nothing could run because of loads."),
    ("scalesim_loaded_bytes", "loaded_bytes", "Bytes copied from the host to the device."),
    ("scalesim_saved_bytes", "saved_bytes", "Bytes copied from the device to the host."),
    ("scalesim_spilled_bytes", "spilled_bytes", "Bytes copied from the host to the disk."),
    ("scalesim_unspilled_bytes", "unspilled_bytes", "Bytes copied from the disk to the host."),
    ("scalesim_read_bytes", "read_bytes", "Bytes of adapters read from their folders."),
    ("scalesim_prefetched_bytes", "prefetched_bytes", "Bytes loaded before anybody asked."),
    ("scalesim_prefetch_used_bytes", "prefetch_used_bytes", "Of those, asked for in time."),
    ("scalesim_prefetch_wasted_bytes", "prefetch_wasted_bytes", "Of those, gone unasked."),
    ("scalesim_evicted_bytes", "evicted_bytes", "Bytes that left the device."),
    ("scalesim_dropped_bytes", "dropped_bytes", "Of those, with no copy left."),
    ("scalesim_preemptions", "preemptions", "Running requests that gave up their pages."),
    ("scalesim_restarts", "restarts", "Times that all state was made anew."),
)
_OUTCOMES = ("on_time", "early", "late", "never")


class Metrics:
    """The registry of one server."""

    def __init__(self, open_requests: OpenRequests, identity: Identity) -> None:
        self.registry = CollectorRegistry()
        self._http = Counter(
            "scalesim_http_requests",
            "Requests that were answered.",
            ("route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "scalesim_request_seconds",
            "From a request's arrival to the end of its reply.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._first = Histogram(
            "scalesim_time_to_first_token_seconds",
            "From a streamed request's start to its first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._between = TokenTimes()
        self.registry.register(self._between)
        self._last: deque[float] = deque(maxlen=_RECENT)
        self._last_first: deque[float] = deque(maxlen=_RECENT)
        self.engine = EngineCollector(open_requests, identity)
        self.registry.register(self.engine)

    def answered(self, route: str, status: int, seconds: float, *, is_call: bool) -> None:
        """A request to ``route``, a path of the table of routes, was answered. ``is_call``: by the
        model."""
        self._http.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if is_call:
            self._last.append(seconds)

    def recent(self) -> dict[str, float | None]:
        """Quantiles of the last requests and first tokens, in seconds."""
        found: dict[str, float | None] = {}
        for name, values in (("request", self._last), ("first", self._last_first)):
            ordered = sorted(values)
            for quantile in (50, 95):
                at = min(len(ordered) - 1, len(ordered) * quantile // 100)
                found[f"{name}_p{quantile}"] = ordered[at] if ordered else None
        return found

    def first_token(self, seconds: float) -> None:
        """The first token of a stream came after ``seconds``."""
        self._first.observe(seconds)
        self._last_first.append(seconds)

    def next_tokens(self, count: int, seconds: float) -> None:
        """``count`` tokens more, ``seconds`` after those before."""
        self._between.add(count, seconds)

    def timed(self, streams: Sequence[Any]) -> list[Any]:
        """``streams``, of one call's samples, whose tokens are timed from now on."""
        return [TimedStream(stream, self) for stream in streams]

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class TokenTimes(Collector):
    """A histogram of the seconds between two tokens. Written on the event loop alone, so no count
    needs a lock: a token takes a seventh of what it takes in ``Histogram``."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_TOKEN_SECONDS) + 1)  # the last: of longer ones
        self._sum_s = 0.0

    def add(self, count: int, seconds: float) -> None:
        """``count`` tokens came ``seconds`` after those before."""
        self._counts[bisect_left(_TOKEN_SECONDS, seconds / count)] += count
        self._sum_s += seconds

    def collect(self) -> Iterator[Metric]:
        totals = accumulate(self._counts)
        bounds = [*map(str, _TOKEN_SECONDS), "+Inf"]
        yield HistogramMetricFamily(
            "scalesim_inter_token_seconds",
            "Between two tokens of a stream.",
            buckets=list(zip(bounds, totals, strict=True)),
            sum_value=self._sum_s,
        )


class TimedStream:
    """A stream of pieces that tells ``metrics`` when its tokens come."""

    def __init__(self, stream: Any, metrics: Metrics) -> None:
        self._stream, self._metrics = stream, metrics
        self._last_s = time.perf_counter()
        self._has_begun = False

    async def __aenter__(self) -> TimedStream:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stream.__aexit__(*error)

    def __aiter__(self) -> TimedStream:
        return self

    async def __anext__(self) -> Any:
        piece = await self._stream.__anext__()
        if count := len(piece.token_ids):
            self._came(count)
        return piece

    def _came(self, count: int) -> None:
        now_s = time.perf_counter()
        if not self._has_begun:
            self._metrics.first_token(now_s - self._last_s)
            self._has_begun, count = True, count - 1
        if count:
            self._metrics.next_tokens(count, now_s - self._last_s)
        self._last_s = now_s


class EngineCollector(Collector):
    """Reads the engine when it is scraped. ``engine`` is ``None`` until there is one."""

    def __init__(self, open_requests: OpenRequests, identity: Identity) -> None:
        self.engine: Engine | None = None
        self._open, self._identity = open_requests, identity

    def collect(self) -> Iterator[Metric]:
        yield _gauge("scalesim_info", "The version that runs.", 1.0, version=__version__)
        yield _gauge("scalesim_http_open_requests", "Requests queued or running.", self._open.count)
        yield _gauge("scalesim_http_open_bytes", "Bytes of their bodies.", self._open.bytes)
        refused = CounterMetricFamily("scalesim_http_refused", "Requests refused with 429.")
        refused.add_metric((), self._open.refused)
        yield refused
        yield _gauge("scalesim_agents", "Agents that the server keeps.", len(self._identity))
        if self.engine is not None:
            yield from _of_engine(self.engine)


def _of_engine(engine: Engine) -> Iterator[Metric]:
    stats: EngineStats = engine.stats
    for name, field, about in _COUNTERS:
        counter = CounterMetricFamily(name, about)
        counter.add_metric((), getattr(stats, field))
        yield counter
    scheduler, view = engine.parts.scheduler, engine.memory
    yield _gauge("scalesim_requests_running", "Requests in the batch.", scheduler.num_running)
    yield _gauge("scalesim_requests_waiting", "Requests that wait.", scheduler.num_waiting)
    yield _gauge("scalesim_clock_ticks", "The simulation's clock.", engine.clock.now)
    yield _gauge("scalesim_lost_pages", "Pages out of circulation for good.", stats.lost_pages)
    size = GaugeMetricFamily("scalesim_tier_bytes", "Size of a pool.", labels=["tier"])
    used = GaugeMetricFamily("scalesim_tier_used_bytes", "Of that, in use.", labels=["tier"])
    for name, tier in view.tiers.items():
        size.add_metric((name,), tier.num_pages * view.page_bytes)
        used.add_metric((name,), (tier.num_pages - tier.num_free) * view.page_bytes)
    yield from (size, used)
    queued = GaugeMetricFamily(
        "scalesim_link_queued_bytes", "Bytes that wait for the link.", labels=["direction"]
    )
    for direction, waiting in view.queued_bytes.items():
        queued.add_metric((direction,), waiting)
    yield queued
    yield from _of_hints(engine)


def _of_hints(engine: Engine) -> Iterator[Metric]:
    predictions = CounterMetricFamily(
        "scalesim_predictions",
        "Predictions of calls, by what became of them.",
        labels=["source", "outcome"],
    )
    ignored = CounterMetricFamily(
        "scalesim_hints_ignored", "Hints that said nothing.", labels=["source"]
    )
    trust = GaugeMetricFamily(
        "scalesim_source_trust", "How far a source of predictions is believed.", labels=["source"]
    )
    for name, score in engine.source_scores().items():
        for outcome in _OUTCOMES:
            predictions.add_metric((name, outcome), getattr(score, outcome))
        ignored.add_metric((name,), sum(list(score.ignored.values())))
        trust.add_metric((name,), score.trust)
    yield from (predictions, ignored, trust)


def _gauge(name: str, about: str, value: float, **labels: str) -> Metric:
    gauge = GaugeMetricFamily(name, about, labels=list(labels))
    gauge.add_metric(list(labels.values()), value)
    return gauge
