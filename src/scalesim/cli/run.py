"""``scalesim run -- PROGRAM``: runs a program whose calls are recorded, and shows one page."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scalesim.cli.options import RunOptions
from scalesim.config import parse_bytes
from scalesim.errors import ConfigError
from scalesim.replay import formats
from scalesim.replay.own import hardware_of, model_of
from scalesim.replay.scenario import Sizes

if TYPE_CHECKING:
    from scalesim.proxy.changes import Improvement
    from scalesim.proxy.findings import Findings
    from scalesim.proxy.plugin_counts import PluginWork
    from scalesim.proxy.recording import Recording


def run(options: RunOptions) -> int:
    """The program's exit code. The page goes to stderr, so that the program's own output stays as
    it is. Raises ``ConfigError``."""
    options.check()
    try:
        import httpx2
        import starlette
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"scalesim run needs {error.name}; pip install 'scalesim-runtime[server]'"
        ) from None
    del httpx2, starlette
    if options.upstream is not None:
        upstream_url(options.upstream)
    sizes = Sizes(options.hardware, options.model, options.residency)
    hardware_of(options.hardware), model_of(options.model)
    host_bytes = parse_bytes(options.host_memory, "--host-memory")
    from scalesim.proxy.plugin_counts import read_counts, work_between
    from scalesim.proxy.recording import Recording

    with tempfile.TemporaryDirectory(prefix="scalesim-run-") as folder:
        recording = Recording(Path(folder) / "calls.jsonl")
        try:
            with answering(options) as (upstream, model):
                before = None if options.upstream is None else read_counts(upstream)
                code = _recorded(options.command, upstream, model, recording)
                work = None if before is None else work_between(before, read_counts(upstream))
        finally:
            recording.close()
        _report(options, recording, sizes, host_bytes, work)
    return code


@contextmanager
def answering(options: RunOptions) -> Iterator[tuple[str, str | None]]:
    """The URL of the server that answers, and the name of its model if it is ours."""
    if options.upstream is not None:
        yield upstream_url(options.upstream), None
        return
    assert options.serve is not None
    from scalesim.engine.engine import Engine
    from scalesim.proxy.program import served
    from scalesim.server.app import make_app
    from scalesim.server.config import ServerConfig

    engine = Engine(options.serve, device=options.device, device_memory=options.device_memory)
    app = make_app(engine, ServerConfig(names=(MODEL_NAME,), embeddings=True))
    with engine, served(lambda: app) as url:
        yield f"{url}/v1", MODEL_NAME


def _recorded(
    command: Sequence[str], upstream: str, model: str | None, recording: Recording
) -> int:
    """Run the program to its end, with a proxy before ``upstream``."""
    import httpx2

    from scalesim.proxy.app import make_proxy
    from scalesim.proxy.program import environment, run_program, served

    def make_app() -> Any:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        timeout = httpx2.Timeout(None, connect=10.0)
        client = httpx2.AsyncClient(limits=limits, timeout=timeout)
        return make_proxy(upstream, recording, client, model)

    with served(make_app) as url:
        return run_program(command, environment(f"{url}/v1", os.environ))


def upstream_url(given: str) -> str:
    """``given`` as a base URL; without a path it gets ``/v1``. Raises ``ConfigError``."""
    try:
        parts = urlsplit(given)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        is_usable = False
    if not is_usable or parts.query or parts.fragment:
        raise ConfigError(
            f"--upstream {given!r} must be a server's URL, like http://localhost:8000/v1"
        )
    return given.rstrip("/") if parts.path.strip("/") else f"{given.rstrip('/')}/v1"


def _report(
    options: RunOptions,
    recording: Recording,
    sizes: Sizes,
    host_bytes: int,
    work: PluginWork | None,
) -> None:
    console = Console(stderr=True, highlight=False)
    if not recording.calls:
        console.print(NO_CALLS)
        return
    from scalesim.proxy.changes import changes
    from scalesim.proxy.findings import find

    ticks = recording.ticks(options.tick)
    if options.trace is not None:
        formats.write(options.trace, ticks, formats.FORMATS["scalesim"])
    with console.status("replaying the calls …"):
        found = find(recording.calls, ticks, sizes, host_bytes, work)
    first = changes(found)
    if options.out is not None:
        figures = asdict(found) | {"changes": [asdict(change) for change in first]}
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for part in page(found, first, sizes):
        console.print(part)


MODEL_NAME = "model"
"""What the served model is called; the proxy puts it in the place of the program's names."""
NO_CALLS = (
    "scalesim run: the program made no calls. It reads its server's URL from none of the variables "
    "that were set (OPENAI_BASE_URL, OPENAI_API_BASE and others; docs/run.md): give it the URL in "
    "its own way, or set base_url=os.environ['OPENAI_BASE_URL'] where it makes its client."
)


def page(found: Findings, first: list[Improvement], sizes: Sizes) -> Iterator[Table | Text]:
    """The page, part by part."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for name, text in _facts(found):
        facts.add_row(name, text)
    yield Text("\nscalesim run", style="bold")
    yield facts
    if found.arms:
        arms = Table(title="the same calls, replayed", title_justify="left", title_style="bold")
        arms.add_column(f"on {sizes.model}, {sizes.hardware}, room for {sizes.residency:.0%}")
        arms.add_column("calls/s", justify="right")
        arms.add_column("found on the device", justify="right")
        for arm in found.arms:
            arms.add_row(arm.name, f"{arm.calls_per_s:.1f}", f"{arm.hits:.0%}")
        yield arms
    for note in found.notes:
        yield Text(note, style="dim")
    yield Text("What would help most" if first else "Nothing here would help by 2 % or more.",
               style="bold")  # fmt: skip
    for number, change in enumerate(first, 1):
        why = change.why[:1].upper() + change.why[1:]
        yield Text(f"{number}. {change.what}: ×{change.factor:.2f} calls/s. {why}.")


def _facts(found: Findings) -> Iterator[tuple[str, str]]:
    traffic, reuse = found.traffic, found.reuse
    failed = ""
    if traffic.failures:
        by_status = ", ".join(
            f"{count} × {_STATUS.get(status, status)}" for status, count in traffic.failures.items()
        )
        failed = f"; {sum(traffic.failures.values())} failed ({by_status})"
    yield (
        "calls",
        f"{traffic.calls} of {traffic.agents} agents in {traffic.seconds:.1f} s, "
        f"{traffic.in_flight:.1f} open at once{failed}",
    )
    yield "told apart by", ", ".join(f"{name} {count}" for name, count in traffic.rungs.items())
    yield (
        "latency",
        (
            f"p50 {traffic.latency_s[0]:.2f} s, p95 {traffic.latency_s[1]:.2f} s; first token "
            f"p50 {traffic.first_token_s[0]:.2f} s, p95 {traffic.first_token_s[1]:.2f} s"
        ),
    )
    yield "tokens a call", f"{traffic.prompt_tokens:.0f} in, {traffic.output_tokens:.0f} out"
    told = "not reported" if reuse.reported is None else f"{reuse.reported:.0%}"
    yield (
        "reuse",
        (f"{reuse.possible:.0%} of the prompts had been said before; the server found: {told}"),
    )
    if (work := found.plugin) is not None:
        tokens = max(1, work.prompt_tokens)
        yield (
            "with the plug-in",
            (
                f"the server found {(work.device_hit_tokens + work.host_hit_tokens) / tokens:.0%} "
                f"of {work.prompt_tokens} prompt tokens: {work.device_hit_tokens / tokens:.0%} on "
                f"the device, {work.host_hit_tokens / tokens:.0%} on the host; "
                f"{work.prefetched_blocks} blocks were loaded ahead, {work.saved_blocks} saved "
                "before they were evicted. Without it: not measured; run once more on LRU"
            ),
        )
    for row in found.profile.predicted if found.profile else ():
        yield (
            f"foreseen, {row['source']}",
            (
                f"{row['said']:.0%} of the calls; on time {row['on_time']:.0%}, early "
                f"{row['early']:.0%}, late {row['late']:.0%}"
            ),
        )
    if (capacity := found.capacity) is not None:
        yield (
            "agents that fit",
            (
                f"{capacity.on_device} on the device, {capacity.with_host} with "
                f"{capacity.host_bytes / 1e9:.0f} GB of host memory "
                f"({capacity.model} on {capacity.hardware})"
            ),
        )


_STATUS = {0: "unfinished", 499: "left by the program", 502: "unreachable"}
