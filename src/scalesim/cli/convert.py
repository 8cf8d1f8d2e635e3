"""``scalesim convert``: a trace in another format."""

from __future__ import annotations

from pathlib import Path

from scalesim.cli.options import ConvertOptions
from scalesim.cli.output import Output
from scalesim.replay import formats


def convert(options: ConvertOptions) -> int:
    """Exit code 0; raises ``ConfigError`` or ``TraceError``."""
    options.check()
    path, out = Path(options.trace), Path(options.out)
    to = formats.format_to_write(options.to, options.out_block_size)
    form = formats.format_named(options.format, path)
    ticks = formats.read(path, form, options.block_size)
    formats.write(out, ticks, to, options.out_block_size)
    calls = sum(len(tick.calls) for tick in ticks)
    agents = len({call.agent for tick in ticks for call in tick.calls} - {None})
    line = f"{options.out}: {calls} calls by {agents} agents, {form.name} to {to.name}"
    Output().print(line, markup=False, highlight=False, soft_wrap=True)
    return 0
