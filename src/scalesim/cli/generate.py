"""``scalesim generate``: continue prompts. Texts go to stdout, a single one as it comes; everything
else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scalesim.cli import say_error
from scalesim.cli.options import GenerateOptions
from scalesim.errors import RequestError
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.requests.stream import ReplyStream


def generate(options: GenerateOptions) -> int:
    """Exit code 0, or 2 when a prompt was refused or failed; the other texts are printed.

    Raises ``ScaleSimError`` where nothing could run.
    """
    if not options.prompt:
        raise RequestError('no prompt was given; give one with --prompt "..."')
    config = options.engine()
    from scalesim.engine.engine import Engine

    with Engine(options.model, config, dummy_weights=options.dummy_weights) as engine:
        agent = None
        if options.adapter is not None:
            agent = engine.agent("generate", adapter=options.adapter).id
        params = engine.sampling(**options.sampling())
        requests = [
            Request([{"role": "user", "content": text}] if options.chat else text, agent, params)
            for text in options.prompt
        ]
        if len(requests) == 1:
            outcomes: Sequence[Reply | Exception] = [write_along(engine.stream(requests[0]))]
        else:
            outcomes = engine.run(requests, return_exceptions=True)
        print(f"[device: {engine.device}]", file=sys.stderr)
    return report(options.prompt, outcomes)


def write_along(stream: ReplyStream) -> Reply:
    """Print a text as it comes."""
    for piece in stream:
        print(piece.text, end="", flush=True)
    print(flush=True)
    assert stream.reply is not None
    return stream.reply


def report(prompts: Sequence[str], outcomes: Sequence[Reply | Exception]) -> int:
    """Print the texts, under their prompts (a single one is printed already), then what they
    took."""
    failed = 0
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        if len(prompts) > 1:
            print(f"--- {prompt}", file=sys.stderr, flush=True)
        if isinstance(outcome, Reply):
            if len(prompts) > 1:
                print(outcome.text, flush=True)
        else:
            failed += 1
            say_error(outcome)
    replies = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
    if replies:
        print(summary(replies), file=sys.stderr)
    return 2 if failed else 0


def summary(replies: Sequence[Reply]) -> str:
    """One line: tokens in and out, how they ended, and the rate from submission to the last end."""
    prompt_len = sum(reply.usage.prompt_tokens for reply in replies)
    output_len = sum(reply.usage.output_tokens for reply in replies)
    seconds = max(reply.latency_s for reply in replies)
    reasons = ", ".join(dict.fromkeys(reply.finish_reason for reply in replies))
    return (
        f"[{prompt_len} prompt tokens, {output_len} generated, {seconds:.2f} s, "
        f"{output_len / max(seconds, 1e-9):.0f} tokens/s, ended by: {reasons}]"
    )
