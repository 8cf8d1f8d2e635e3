"""Reading along: the pieces are the reply, whoever stops reading cancels, and nobody is held up."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from scalesim import errors
from scalesim.engine.engine import Engine
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.reply import Reply
from scalesim.requests.stream import AsyncReplyStream, ReplyStream, TextPiece
from tests.engine.test_same_texts import check_empty
from tests.engine.world import tiny_engine
from tests.inside import part

LONG: dict[str, Any] = {"max_tokens": 3000, "ignore_eos": True}


@pytest.fixture
def engine() -> Iterator[Engine]:
    with tiny_engine() as made:
        yield made


def settle(engine: Engine) -> None:
    """Everything that was posted has been done when this call, made later, has its reply; what was
    cancelled has then left its slot."""
    for _ in range(2):
        engine.agent("last").generate([1, 2, 3], max_tokens=2)
    assert engine.parts.scheduler.num_running == 0
    assert engine.parts.scheduler.num_waiting == 0
    assert part(engine, RequestLimiter).num_free == part(engine, RequestLimiter).limit


def joined(pieces: list[TextPiece]) -> tuple[str, tuple[int, ...]]:
    return "".join(p.text for p in pieces), tuple(t for p in pieces for t in p.token_ids)


def check(pieces: list[TextPiece], reply: Reply) -> None:
    """All pieces together are the reply, which comes with the last one only."""
    assert joined(pieces) == (reply.text, reply.token_ids)
    last = pieces[-1].reply
    assert last is not None and last.token_ids == reply.token_ids and last.text == reply.text
    assert last.usage.output_tokens == reply.usage.output_tokens
    assert last.finish_reason == reply.finish_reason
    assert all(piece.reply is None for piece in pieces[:-1])


def test_pieces_are_the_reply(engine: Engine) -> None:
    """Random bytes are mostly broken characters: a piece that split one would show it."""
    rng = np.random.default_rng(0)
    agent = engine.agent("ada")
    finished = set()
    for seed in range(30):
        options: dict[str, Any] = {"seed": seed, "max_tokens": 40, "ignore_eos": seed % 2 == 0}
        prompt = rng.integers(0, 256, 20).tolist()
        whole = agent.generate(prompt, **options)
        assert whole.text is not None
        if seed % 3 == 1:
            at = int(rng.integers(0, max(1, len(whole.text) - 3)))
            options["stop"] = (whole.text[at : at + 3], "never there")
        elif seed % 3 == 2:
            options["stop_token_ids"] = (whole.token_ids[len(whole.token_ids) // 2],)
        reply = agent.generate(prompt, **options)
        check(list(agent.stream(prompt, **options)), reply)
        finished.add(reply.finish_reason)
    assert finished == {"stop", "length"}


def test_no_part_of_a_stop_string_is_shown(engine: Engine) -> None:
    agent = engine.agent("ada")
    whole = agent.generate("once", max_tokens=60, seed=2, ignore_eos=True).text
    assert whole is not None
    stop = whole[20:26]
    want = whole[: whole.index(stop)]
    shown = ""
    for piece in agent.stream("once", max_tokens=60, seed=2, ignore_eos=True, stop=(stop,)):
        shown += piece.text
        assert want.startswith(shown)
    assert shown == want


def test_async_pieces_are_the_reply(engine: Engine) -> None:
    async def read(number: int) -> list[TextPiece]:
        stream = engine.agent(number).stream_async([number, 7, 9], max_tokens=30, seed=number)
        pieces = [piece async for piece in stream]
        assert stream.reply is pieces[-1].reply
        return pieces

    async def main() -> list[list[TextPiece]]:
        return await asyncio.gather(*map(read, range(40)))

    for number, pieces in enumerate(asyncio.run(main())):
        alone = engine.agent(number).generate([number, 7, 9], max_tokens=30, seed=number)
        check(pieces, alone)


def leave_by_break(agent: Any) -> None:
    for _piece in agent.stream([1, 2, 3], **LONG):
        break


def leave_by_error(agent: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        for _piece in agent.stream([1, 2, 3], **LONG):
            raise ZeroDivisionError


def leave_by_close(agent: Any) -> None:
    with agent.stream([1, 2, 3], **LONG) as stream:
        assert next(stream).token_ids
    assert list(stream) == []


def leave_unread(agent: Any) -> None:
    agent.stream([1, 2, 3], **LONG)


def leave_to_the_collector(agent: Any) -> None:
    cycle: list[Any] = [agent.stream([1, 2, 3], **LONG)]
    cycle.append(cycle)
    next(cycle[0])
    del cycle
    gc.collect()


def leave_async_break(agent: Any) -> None:
    async def main() -> None:
        async for _piece in agent.stream_async([1, 2, 3], **LONG):
            break

    asyncio.run(main())


def leave_by_cancelled_task(agent: Any) -> None:
    async def main() -> None:
        read = asyncio.Event()

        async def reader() -> None:
            async for _piece in agent.stream_async([1, 2, 3], **LONG):
                read.set()

        task = asyncio.create_task(reader())
        await read.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def leave_async_unread(agent: Any) -> None:
    async def main() -> None:
        agent.stream_async([1, 2, 3], **LONG)
        async with agent.stream_async([1, 2, 3], **LONG) as stream:
            await anext_of(stream)

    asyncio.run(main())


async def anext_of(stream: AsyncReplyStream) -> TextPiece:
    return await stream.__anext__()


WAYS = [
    leave_by_break, leave_by_error, leave_by_close, leave_unread, leave_to_the_collector,
    leave_async_break, leave_by_cancelled_task, leave_async_unread,
]  # fmt: skip


@pytest.mark.parametrize("leave", WAYS)
def test_leaving_the_loop_frees_the_pages(engine: Engine, leave: Any) -> None:
    leave(engine.agent("ada"))
    settle(engine)
    assert engine.stats.output_tokens < 2000  # it did not run to its end
    engine.close()
    check_empty(engine)


def test_a_slow_reader_holds_nobody_up(engine: Engine) -> None:
    ada, bob = engine.agent("ada"), engine.agent("bob")
    stream = ada.stream("tell me", max_tokens=200, seed=1, ignore_eos=True)
    for _ in range(5):  # ends while nobody reads the stream
        assert bob.generate("hey", max_tokens=50, ignore_eos=True).usage.output_tokens == 50
    pieces = list(stream)
    check(pieces, ada.generate("tell me", max_tokens=200, seed=1, ignore_eos=True))
    assert len(pieces[0].token_ids) > 1  # what had come meanwhile comes in one piece


def test_errors_come_through_a_stream(engine: Engine) -> None:
    agent = engine.agent("ada")
    with pytest.raises(errors.PromptTooLongError):
        agent.stream([1] * 5000)
    with pytest.raises(errors.RequestTimeoutError):
        list(agent.stream([1, 2, 3], timeout=1e-3, **LONG))

    async def main() -> None:
        with pytest.raises(errors.RequestTimeoutError):
            async for _piece in agent.stream_async([1, 2, 3], timeout=1e-3, **LONG):
                pass

    asyncio.run(main())
    settle(engine)


def test_closing_the_engine_ends_streams(engine: Engine) -> None:
    stream = engine.agent("ada").stream([1, 2, 3], **LONG)
    next(stream)
    threading.Thread(target=engine.close).start()
    with pytest.raises(errors.EngineClosedError):
        for _piece in stream:
            pass
    with pytest.raises(StopIteration):
        next(stream)


def test_a_stream_keeps_its_engine() -> None:
    def start() -> ReplyStream:
        return tiny_engine().agent("ada").stream("hello", max_tokens=10, seed=1)

    stream = start()
    gc.collect()
    assert joined(list(stream))[1]
    part(stream, Engine).close()
