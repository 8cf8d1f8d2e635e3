"""Which of an agent's equal requests one is decides its text: numbered as they are handed in, in
their order, never by when they run, wait or end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from scalesim.core import AgentId
from scalesim.engine.engine import Engine
from scalesim.engine.inbox import Inbox
from scalesim.errors import EngineFullError, RequestError, RequestTimeoutError, ScaleSimError
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.keys import SamplingKeys
from scalesim.sampling.params import SamplingParams
from scalesim.testing.tag_parts import tag_parts
from tests.engine.world import tiny_engine
from tests.inside import part

Texts = list[tuple[int, ...]]
NUM = 6


def engine(**parts: Any) -> Engine:
    made = Engine(tag_parts(**{"device_pages": 64, "host_pages": 64, **parts}))
    made.agent("ada")
    return made


def request(agent: AgentId | None = "ada", **more: Any) -> Request:
    params = {"max_tokens": 6, "temperature": 1.0, **more}
    index = params.pop("sample_index", 0)
    timeout = params.pop("timeout", None)
    return Request(
        list(range(40)),
        agent=agent,
        params=SamplingParams(**params),
        sample_index=index,
        timeout=timeout,
    )


def one_by_one(made: Engine, asked: Request) -> Texts:
    return [made.generate(asked).token_ids for _ in range(NUM)]


def in_one_batch(made: Engine, asked: Request) -> Texts:
    return [reply.token_ids for reply in made.run([asked] * NUM) if isinstance(reply, Reply)]


def gathered(made: Engine, asked: Request) -> Texts:
    async def main() -> list[Reply]:
        return await asyncio.gather(*(made.generate_async(asked) for _ in range(NUM)))

    return [reply.token_ids for reply in asyncio.run(main())]


def from_threads(made: Engine, asked: Request) -> Texts:
    """Sorted by the caller: which thread comes first is not ours to say."""
    found: list[tuple[int, ...]] = []
    threads = [
        threading.Thread(target=lambda: found.append(made.generate(asked).token_ids))
        for _ in range(NUM)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def streamed(made: Engine, asked: Request) -> Texts:
    streams = [made.stream(asked) for _ in range(NUM)]
    for stream in reversed(streams):  # read in another order than they were begun
        for _ in stream:
            pass
    return [stream.reply.token_ids for stream in streams]


def submitted(made: Engine, asked: Request) -> Texts:
    calls = [made.submit(asked) for _ in range(NUM)]
    while not all(call.done for call in calls):
        made.step()
    return [call.result().token_ids for call in calls]


WAYS: list[Callable[[Engine, Request], Texts]] = [
    one_by_one, in_one_batch, gathered, streamed, submitted,
]  # fmt: skip


@pytest.mark.parametrize("limit", [1, 2, 64])
@pytest.mark.parametrize("agent", ["ada", None])
def test_every_way_of_asking_gives_the_same_texts_in_the_same_order(
    agent: AgentId | None, limit: int
) -> None:
    """At a gate that lets one in at a time as well."""
    found = []
    for way in WAYS:
        if way in (streamed, submitted) and limit < NUM:
            continue  # these would wait for themselves
        with engine(max_open_requests=limit, max_num_seqs=3) as made:
            found.append(way(made, request(agent)))
    with engine(max_num_seqs=2) as made:
        assert set(from_threads(made, request(agent))) == set(found[0])
    assert all(each == found[0] for each in found)
    assert len(set(found[0])) == NUM


def test_what_asks_for_something_else_counts_apart() -> None:
    with engine() as made, engine() as other:
        made.agent("bob")
        noise = [request("bob"), request(None), request(top_k=9), request(temperature=0.5)]
        mixed = made.run([*noise, request(), *noise, request(sample_index=1), request()])
        plain = other.run([request(), request()])
        texts = [reply.token_ids for reply in mixed if isinstance(reply, Reply)]
        assert [texts[4], texts[-1]] == [r.token_ids for r in plain if isinstance(r, Reply)]


def test_samples_share_one_number() -> None:
    """Sample ``i`` is what ``sample_index=i`` gives, before and after."""
    with engine() as made, engine() as other:
        twice = [made.generate(request(n=3)) for _ in range(2)]
        singly = [
            [other.generate(request(sample_index=index)).token_ids for index in range(3)]
            for _ in range(2)
        ]
        assert [[each.token_ids for each in reply.samples] for reply in twice] == singly
        assert len({text for texts in singly for text in texts}) == 6


def test_seeds_and_greedy_texts_are_not_numbered() -> None:
    with engine() as made:
        for asked in (request(seed=3), request(temperature=0.0)):
            assert len(set(one_by_one(made, asked))) == 1
        first = made.generate(request()).token_ids
        assert len(part(made, SamplingKeys)) <= 1
    with engine() as other:
        assert other.generate(request()).token_ids == first


def cancels(made: Engine) -> None:
    call = made.submit(request())
    made.cancel(call)
    while not call.done:
        made.step()


def times_out(made: Engine) -> None:
    call = made.submit(request(timeout=1e-9))
    while not call.done:
        made.step()
    with pytest.raises(RequestTimeoutError):
        call.result()


def fails(made: Engine) -> None:
    def mask(prompt: Any, output: Any) -> None:
        raise RuntimeError("no")

    call = made.submit(request(mask=mask))
    while not call.done:
        made.step()
    with pytest.raises(RuntimeError):
        call.result()


def drive(made: Engine, asked: Request) -> tuple[int, ...]:
    call = made.submit(asked)
    while not call.done:
        made.step()
    return call.result().token_ids


@pytest.mark.parametrize("ends", [cancels, times_out, fails])
def test_what_was_handed_in_counts_however_it_ends(ends: Callable[[Engine], None]) -> None:
    with tiny_engine() as plain, tiny_engine() as made:
        plain.agent("ada")
        made.agent("ada")
        texts = [drive(plain, request()) for _ in range(3)]
        assert drive(made, request()) == texts[0]
        ends(made)
        assert drive(made, request()) == texts[2]


def test_what_was_refused_does_not_count() -> None:
    with engine() as plain:
        texts = [drive(plain, request()) for _ in range(3)]
    with engine(max_open_requests=1) as made:
        call = made.submit(request())
        with pytest.raises(EngineFullError):
            made.submit(request())
        while not call.done:
            made.step()
        for wrong in (request(top_k=-1), request(max_tokens=10**6)):
            with pytest.raises(ScaleSimError):
                made.submit(wrong)
        assert [call.result().token_ids, drive(made, request())] == texts[:2]
    with tiny_engine(max_open_requests=2, when_full="error") as made:
        ada = made.agent("ada")
        asked = ada.request("hello", max_tokens=8, ignore_eos=True)
        with pytest.raises(EngineFullError):
            made.run([asked] * 3)
        with pytest.raises(RequestError):
            made.run([asked, ada.request("hello", top_k=-1)])
        first = made.generate(asked).token_ids
    with tiny_engine() as other:
        assert (
            other.agent("ada").generate("hello", max_tokens=8, ignore_eos=True).token_ids == first
        )


def test_awaited_structures_are_numbered_as_they_begin() -> None:
    pytest.importorskip("llguidance")

    async def main(made: Engine, patterns: list[str]) -> Texts:
        ada = made.agent("ada")
        calls = [ada.generate_async("x", max_tokens=9, regex=pattern) for pattern in patterns]
        return [reply.token_ids for reply in await asyncio.gather(*calls)]

    slow, quick = "([a-z]{1,200}[0-9]{1,200}){1,3}", "[a-z]{9,12}"
    with tiny_engine() as made, tiny_engine() as other:
        both = asyncio.run(main(made, [slow, quick, quick]))
        ada = other.agent("ada")
        expected = [
            ada.generate("x", max_tokens=9, regex=pattern).token_ids
            for pattern in (slow, quick, quick)
        ]
        assert both == expected


def test_a_restart_numbers_nothing_anew() -> None:
    made = tag_parts(device_pages=64, host_pages=64)
    from dataclasses import replace

    with Engine(replace(made, integrity="quarantine")) as broken, engine() as plain:
        broken.agent("ada")
        texts = [drive(plain, request()) for _ in range(4)]
        said = [drive(broken, request())]
        call = broken.submit(request())
        broken.step()
        part(broken, Inbox).post(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        while not call.done:
            broken.step()
        assert broken.stats.restarts == 1
        said += [call.result().token_ids, drive(broken, request()), drive(broken, request())]
        assert said == texts


def test_numbers_are_bounded_and_hang_on_the_order_alone() -> None:
    keys = SamplingKeys(0)
    order = [*range(64), 0, 1, *range(100, 163), 1, 0, 1]
    numbers = [keys.number("ada", digest, 0, None) for digest in order]
    assert numbers[64:66] == [1, 1] and numbers[-3:] == [2, 0, 3]
    for digest in range(5000):
        assert keys.number(None, digest, 0, None) == 0
    assert keys.number(None, 5000 - 4096, 0, None) == 1
    assert keys.number(None, 5000 - 4097, 0, None) == 0
    assert keys.number(None, 4999, 0, None) == 1
    keys.forget([None, "ada"])  # type: ignore[list-item]
    assert not len(keys)
