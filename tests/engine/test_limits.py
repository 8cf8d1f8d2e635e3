"""What bounds a call: time, room in the prompt, places for open requests; and who goes first."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import threading
import time
from functools import partial
from typing import Any

import pytest

from scalesim import errors
from scalesim.distance.estimates import NOTHING, Estimates, Source
from scalesim.engine.build import with_settings
from scalesim.engine.engine import Engine
from scalesim.engine.sources import EngineListener
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.prepare import Intake
from scalesim.requests.prompt import Prompt
from scalesim.requests.reply import Dropped, Reply
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from scalesim.scheduler.sequence import Phase
from tests.engine.test_same_texts import check_empty
from tests.engine.world import TOKENIZER, tiny_engine
from tests.inside import part

LONG = SamplingParams(max_tokens=60, ignore_eos=True)


# -- time ---------------------------------------------------------------------------------------


def test_the_earlier_of_timeout_and_deadline_counts() -> None:
    clock = [100.0]
    engine = Engine(dataclasses.replace(tiny_engine().parts, time_s=lambda: clock[0]))
    bounds = [(5.0, None), (None, 103.0), (50.0, 104.0), (None, 99.0)]
    calls = [
        engine.submit(Request("abc", params=LONG, timeout=timeout, deadline=deadline))
        for timeout, deadline in bounds
    ]
    ended = []
    for now in (100.0, 103.0, 104.0, 105.0):
        clock[0] = now
        engine.step()
        engine.step()
        ended.append([call.done for call in calls])
    assert ended == [
        [False, False, False, True],
        [False, True, False, True],
        [False, True, True, True],
        [True, True, True, True],
    ]
    for call in calls:
        with pytest.raises(errors.RequestTimeoutError, match="did not end within"):
            call.result()
    engine.close()
    check_empty(engine)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"deadline": math.inf}, "deadline"),
        ({"priority": 1.5}, "priority"),
        ({"priority": 10**7}, "priority"),
        ({"more_calls": -1}, "more_calls"),
        ({"more_calls": 1.5}, "more_calls"),
        ({"on_overflow": "truncate"}, "on_overflow"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], word: str) -> None:
    with tiny_engine() as engine, pytest.raises(errors.RequestError, match=word):
        engine.agent("ada").generate("hi", **options)


# -- room in the prompt -------------------------------------------------------------------------


def test_the_oldest_tokens_are_dropped() -> None:
    with tiny_engine(max_model_len=100) as engine:
        ada = engine.agent("ada")
        prompt = list(range(130))
        with pytest.raises(errors.PromptTooLongError, match="130 tokens and max_tokens=20"):
            ada.generate(prompt, max_tokens=20)
        reply = ada.generate(prompt, max_tokens=20, seed=1, on_overflow="drop_oldest")
        assert reply.dropped == Dropped(tokens=50)
        kept = ada.generate(prompt[50:], max_tokens=20, seed=1)
        assert kept.token_ids == reply.token_ids and kept.dropped is None
        text = "".join(chr(97 + i % 26) for i in range(150))
        by_text = ada.generate(text, max_tokens=20, seed=1, on_overflow="drop_oldest")
        ids = TOKENIZER.encode(text)  # what stands before every text stays
        assert by_text.dropped == Dropped(tokens=71)
        kept = ada.generate([ids[0], *ids[72:]], max_tokens=20, seed=1)
        assert by_text.token_ids == kept.token_ids
        with pytest.raises(errors.PromptTooLongError):
            ada.generate([1], max_tokens=100, on_overflow="drop_oldest")


def chat(num_turns: int, system: bool = True) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": "You are Ada."}] if system else []
    for turn in range(num_turns):
        messages.append({"role": "user", "content": f"question {turn}"})
        messages.append({"role": "assistant", "content": f"answer {turn}"})
    return [*messages, {"role": "user", "content": "and now?"}]


@pytest.mark.parametrize("system", [True, False])
def test_the_oldest_turns_are_dropped_but_the_system_message(system: bool) -> None:
    with tiny_engine(max_model_len=300) as engine:
        ada, messages = engine.agent("ada"), chat(10, system)
        with pytest.raises(errors.PromptTooLongError):
            ada.chat(messages, max_tokens=20)
        reply = ada.chat(messages, max_tokens=20, seed=1, on_overflow="drop_oldest")
        assert reply.dropped is not None and reply.dropped.messages % 2 == 0
        first, count = int(system), reply.dropped.messages
        rest = [*messages[:first], *messages[first + count :]]
        whole = len(engine.model.token_ids(messages))
        assert reply.dropped.tokens == whole - reply.usage.prompt_tokens
        assert ada.chat(rest, max_tokens=20, seed=1).token_ids == reply.token_ids
        one_more = [*messages[:first], *messages[first + count - 2 :]]
        assert len(engine.model.token_ids(one_more)) + 20 > 300  # no more than needed
        lone = [*messages[:first], {"role": "user", "content": "x" * 400}]
        with pytest.raises(errors.PromptTooLongError):
            ada.chat(lone, max_tokens=20, on_overflow="drop_oldest")


def test_a_function_shortens() -> None:
    asked = []

    def halve(prompt: Prompt, have: int, most: int) -> Prompt:
        asked.append((have, most))
        return prompt[len(prompt) // 2 :]

    with tiny_engine(max_model_len=100) as engine:
        ada = engine.agent("ada")
        reply = ada.generate(list(range(200)), max_tokens=20, on_overflow=halve)
        assert asked == [(200, 80), (100, 80)]
        assert reply.dropped == Dropped(tokens=150) and reply.usage.prompt_tokens == 50
        with pytest.raises(errors.PromptTooLongError, match="shorter each time"):
            ada.generate([1] * 200, max_tokens=20, on_overflow=lambda prompt, have, most: prompt)


# -- places -------------------------------------------------------------------------------------


def test_callers_wait_for_places_and_all_are_served() -> None:
    requests = [Request([number, 5, 9], params=SamplingParams(max_tokens=4, seed=1))
                for number in range(60)]  # fmt: skip
    with tiny_engine() as engine:
        free = [reply.token_ids for reply in engine.run(requests) if isinstance(reply, Reply)]
    with tiny_engine(max_open_requests=3) as engine:
        run = [reply.token_ids for reply in engine.run(requests) if isinstance(reply, Reply)]

        async def gathered() -> list[Reply]:
            return await asyncio.gather(*map(engine.generate_async, requests))

        waited = [reply.token_ids for reply in asyncio.run(gathered())]
        threaded: dict[int, tuple[int, ...]] = {}
        threads = [
            threading.Thread(
                target=lambda i=i: threaded.__setitem__(i, engine.generate(requests[i]).token_ids)
            )
            for i in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert part(engine, RequestLimiter).num_free == 3
    assert free == run == waited
    assert [threaded[i] for i in range(20)] == free[:20]


def test_a_full_engine_can_refuse() -> None:
    with tiny_engine(max_open_requests=2, when_full="error") as engine:
        ada = engine.agent("ada")
        with pytest.raises(errors.EngineFullError, match="max_open_requests=2"):
            engine.run([ada.request("a"), ada.request("b"), ada.request("c")])
        with ada.stream("a", max_tokens=3000), ada.stream("b", max_tokens=3000):
            with pytest.raises(errors.EngineFullError):
                ada.generate("c")
            with pytest.raises(errors.EngineFullError):
                asyncio.run(ada.generate_async("c"))
    engine = tiny_engine(max_open_requests=1)
    engine.submit(Request("a"))
    with pytest.raises(errors.EngineFullError):  # who drives the loop cannot wait for it
        engine.submit(Request("b"))
    engine.close()


def test_time_in_line_counts() -> None:
    with tiny_engine(max_open_requests=1) as engine:
        ada = engine.agent("ada")
        with ada.stream("a", max_tokens=3000, ignore_eos=True) as stream:
            next(stream)
            with pytest.raises(errors.RequestTimeoutError):
                ada.generate("b", timeout=1e-3)
            with pytest.raises(errors.RequestTimeoutError):
                asyncio.run(ada.generate_async("b", timeout=1e-3))
            with pytest.raises(errors.RequestTimeoutError):
                ada.generate("b", deadline=time.monotonic() - 1.0)
            late = [ada.request("b", timeout=1e-3), ada.request("c", timeout=1e-3)]
            outcomes = engine.run(late, return_exceptions=True)
            assert all(isinstance(each, errors.RequestTimeoutError) for each in outcomes)
        assert ada.generate("b", max_tokens=2).token_ids
        assert part(engine, RequestLimiter).num_free == 1


def test_a_cancelled_caller_leaves_the_line() -> None:
    async def main() -> None:
        with tiny_engine(max_open_requests=1) as engine:
            ada = engine.agent("ada")
            stream = ada.stream("a", max_tokens=3000, ignore_eos=True)
            tasks = [asyncio.create_task(ada.generate_async("b", max_tokens=2)) for _ in range(3)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            stream.close()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(done[0], asyncio.CancelledError)
            assert all(isinstance(each, Reply) for each in done[1:])
            assert part(engine, RequestLimiter).num_free == 1

    asyncio.run(main())


def test_closing_wakes_those_in_line() -> None:
    engine = tiny_engine(max_open_requests=1)
    stream = engine.agent("ada").stream("a", max_tokens=3000, ignore_eos=True)
    errors_seen: list[Exception] = []

    def wait() -> None:
        try:
            engine.generate(Request("b"))
        except Exception as error:
            errors_seen.append(error)

    threads = [threading.Thread(target=wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    while len(part(engine, RequestLimiter).calls()) < 6:
        next(stream)
    engine.close()
    for thread in threads:
        thread.join(timeout=60)
    assert [type(error) for error in errors_seen] == [errors.EngineClosedError] * 5


def test_the_gate_is_first_come_first_served() -> None:
    engine = tiny_engine(max_open_requests=2)
    call = partial(part(engine, Intake).prepare, Request("a"))
    gate, calls = part(engine, RequestLimiter), [call() for _ in range(8)]
    assert gate.enter(calls[:5]) == calls[:2] and gate.num_free == 0
    assert gate.enter(calls[5:]) == []
    with pytest.raises(errors.EngineFullError):  # nobody overtakes the line
        gate.take([call()])
    calls[3].done = True  # it ran out of time in line
    for gone, following in zip([0, 1, 2, 4, 5], [[2], [4], [5], [6], [7]], strict=True):
        calls[gone].done = True
        for _ in range(2):  # who leaves twice gives back one place
            gate.leave([calls[gone]])
        assert gate.enter([]) == [calls[each] for each in following]
    for each in calls:
        each.done = True
    gate.leave(calls)
    assert gate.num_free == 2 and not gate.calls()
    engine.close()


def test_limits_that_are_refused() -> None:
    for settings in ({"max_open_requests": 0}, {"when_full": "shrug"}):
        with pytest.raises(errors.ConfigError, match=next(iter(settings))):
            with_settings(None, settings)


# -- who goes first -----------------------------------------------------------------------------


def order_of_ends(options: list[dict[str, int]], **settings: Any) -> list[int]:
    engine = tiny_engine(max_num_seqs=1, **settings)
    engine.tick()
    calls = [
        engine.submit(engine.agent(i).request([i, 3, 4], max_tokens=2, **given))
        for i, given in enumerate(options)
    ]
    ended: list[int] = []
    while len(ended) < len(calls):
        engine.step()
        ended += [i for i, call in enumerate(calls) if call.done and i not in ended]
    engine.close()
    return ended


def test_lower_priorities_go_first() -> None:
    priorities = [{"priority": priority} for priority in (0, 5, -1, 0, -1, 5)]
    assert order_of_ends(priorities) == [2, 4, 0, 3, 1, 5]
    assert order_of_ends([{}] * 6) == list(range(6))


def test_who_has_more_calls_to_make_goes_first() -> None:
    calls = [{}, {"more_calls": 1}, {"more_calls": 0}, {"more_calls": 4}]
    assert order_of_ends(calls) == [3, 1, 0, 2]
    assert order_of_ends(calls, order="arrival") == [0, 1, 2, 3]


def test_who_was_overtaken_too_often_goes_before_all() -> None:
    """Urgent requests keep coming; one that is not waits ``max_skips`` admissions at most."""
    engine = tiny_engine(max_num_seqs=1, max_skips=4)
    urgent = Request([7, 8], params=SamplingParams(max_tokens=1), priority=-1)
    patient = engine.submit(Request([1, 2, 3], params=SamplingParams(max_tokens=1), priority=9))
    calls = []
    while not patient.done:
        calls.append(engine.submit(urgent))
        calls.append(engine.submit(urgent))
        engine.step()
        assert len(calls) < 40
    assert sum(call.done for call in calls) <= 6
    engine.close()


def test_the_least_urgent_yields_its_pages() -> None:
    engine = tiny_engine(device_pages=14, host_pages=0, max_num_seqs=4)
    params = SamplingParams(max_tokens=120, ignore_eos=True)
    calls = []
    for agent, priority in enumerate((2, 0, 1)):  # the first to come is the least urgent
        calls.append(engine.submit(Request([agent] * 30, params=params, priority=priority)))
        engine.step()
    while not all(call.done for call in calls):
        engine.step()
    preempted = [call.result().usage.num_preemptions for call in calls]
    assert preempted[0] > 0 and preempted[1] == 0
    assert calls[0].result().usage.rebuilt_tokens > 0
    assert all(call.sequence is not None and call.sequence.phase is Phase.FINISHED
               for call in calls)  # fmt: skip
    engine.close()
    check_empty(engine)


# -- what it took -------------------------------------------------------------------------------


def test_usage_says_where_cached_tokens_came_from() -> None:
    prompt = list(range(160))
    with tiny_engine(device_pages=24, host_pages=100) as engine:
        ada, bob = engine.agent("ada"), engine.agent("bob")
        first = ada.generate(prompt, max_tokens=2).usage
        assert (first.cached_tokens, first.host_tokens, first.rebuilt_tokens) == (0, 0, 0)
        again = ada.generate(prompt, max_tokens=2).usage
        assert again.device_tokens == again.cached_tokens >= 144 and again.host_tokens == 0
        bob.generate([9] * 320, max_tokens=2)  # drives ada out, to the host
        loaded = ada.generate(prompt, max_tokens=2).usage
        assert loaded.host_tokens > 0 and loaded.rebuilt_tokens == 0
        assert loaded.device_tokens + loaded.host_tokens == loaded.cached_tokens
    with tiny_engine(device_pages=24, host_pages=0, policy="lru-recompute") as engine:
        ada, bob = engine.agent("ada"), engine.agent("bob")
        ada.generate(prompt, max_tokens=2)
        bob.generate([9] * 320, max_tokens=2)
        lost = ada.generate(prompt, max_tokens=2).usage
        assert lost.rebuilt_tokens > 0 and lost.host_tokens == 0
        assert lost.rebuilt_tokens + lost.cached_tokens <= len(prompt)


# -- who may call -------------------------------------------------------------------------------


def test_calls_that_wait_work_inside_a_running_loop() -> None:
    async def cell() -> list[Reply | Exception]:
        with tiny_engine(max_open_requests=2) as engine:
            ada = engine.agent("ada")
            task = asyncio.create_task(ada.generate_async("first", max_tokens=5))
            await asyncio.sleep(0)
            replies = engine.run([ada.request("a", max_tokens=3) for _ in range(8)])
            assert list(ada.stream("b", max_tokens=3))
            assert (await task).token_ids
            return replies

    assert len(asyncio.run(cell())) == 8


def test_the_engines_own_thread_may_not_wait_for_itself() -> None:
    caught: list[Exception] = []

    class Curious(Source):
        name = "curious"

        def changes(self, now: float) -> Estimates:
            if threading.current_thread().name == "scalesim-engine":
                try:
                    engine.generate(Request("hi"))
                except Exception as error:
                    caught.append(error)
            return NOTHING

    source = Curious()
    with tiny_engine(sources=[source]) as engine:
        engine.agent("ada").generate("hi", max_tokens=2)
        part(engine, EngineListener).has_news()
        engine.agent("ada").generate("hi", max_tokens=2)
    assert {type(error) for error in caught} == {errors.EngineModeError}


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[tuple[int, int]] = []
    with tiny_engine() as engine:
        requests = [engine.agent(i).request("hi", max_tokens=3) for i in range(5)]
        engine.run(requests, progress=lambda done, total: shown.append((done, total)))
        assert shown[-1] == (5, 5) and shown == sorted(shown)
        engine.run(requests, progress=True)
        assert "5/5" in capsys.readouterr().out
        engine.run(requests, progress="tqdm")
        assert "5/5" in capsys.readouterr().err
        with pytest.raises(errors.RequestError, match="progress"):
            engine.run(requests, progress="bar")  # type: ignore[arg-type]
