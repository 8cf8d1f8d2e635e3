"""``scalesim convert``: a trace in another format."""

from __future__ import annotations

from pathlib import Path

from scalesim.cli.options import ConvertOptions
from scalesim.errors import ConfigError
from scalesim.replay import formats


def convert(options: ConvertOptions) -> int:
    """Exit code 0; raises ``ConfigError`` or ``TraceError``."""
    path = Path(options.trace)
    form = formats.format_named(options.format, path)
    to = formats.format_named(options.to, path) if options.to != "auto" else None
    if to is None:
        raise ConfigError("--to auto: name the format to write")
    own = options.block_size if form.blocks else None
    steps = formats.read(path, form, own)
    size = options.out_block_size
    if size is not None and not to.blocks:
        raise ConfigError(f"--out-block-size {size}: traces in {to.name} have no blocks")
    if options.block_size is not None and own is None:
        raise ConfigError(
            f"--block-size {options.block_size}: traces in {form.name} have no blocks; "
            "--out-block-size is that of what is written"
        )
    formats.write(Path(options.out), steps, to, size)
    calls = sum(len(step.turns) for step in steps)
    agents = len({turn.agent for step in steps for turn in step.turns} - {None})
    print(f"{options.out}: {calls} calls by {agents} agents, {form.name} to {to.name}")
    return 0
