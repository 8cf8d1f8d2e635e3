"""Ten thousand gathered calls and two hundred threads say what one batch says."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from scalesim.engine.engine import Engine
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from scalesim.testing.tag_parts import tag_parts

NUM_AGENTS = 400
VOCAB = 512


def engine(steps_in_flight: int = 1) -> Engine:
    """A pool for a quarter of the agents' prefixes."""
    made = Engine(
        tag_parts(
            device_pages=NUM_AGENTS,
            host_pages=4 * NUM_AGENTS,
            verify="new",
            steps_in_flight=steps_in_flight,
            vocab_size=VOCAB,
        )
    )
    for agent in range(NUM_AGENTS):
        made.agent(agent)
    return made


def requests(count: int) -> list[Request]:
    """Calls of agents with a prefix of their own; no call is made twice."""
    rng = np.random.default_rng(0)
    prefixes = rng.integers(0, VOCAB, (NUM_AGENTS, 48))
    made = []
    for number in range(count):
        agent = number % NUM_AGENTS
        new = [number % VOCAB, number // VOCAB, *rng.integers(0, VOCAB, 6).tolist()]
        params = SamplingParams(max_tokens=2 + number % 5)
        made.append(Request([*prefixes[agent].tolist(), *new], agent=agent, params=params))
    return made


def texts(replies: list[Reply | Exception]) -> list[tuple[int, ...]]:
    return [reply.token_ids for reply in replies if isinstance(reply, Reply)]


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_ten_thousand_gathered_calls(steps_in_flight: int) -> None:
    asked = requests(10_000)
    with engine(steps_in_flight) as one:
        expected = texts(one.run(asked))
    assert len(expected) == len(asked)

    async def main() -> list[Reply]:
        with engine(steps_in_flight) as other:
            return await asyncio.gather(*(other.generate_async(request) for request in asked))

    assert texts(list(asyncio.run(main()))) == expected


def test_two_hundred_threads() -> None:
    asked = requests(4_000)
    with engine() as one:
        expected = texts(one.run(asked))
    replies: list[Reply | None] = [None] * len(asked)
    with engine() as other:

        def caller(first: int) -> None:
            for number in range(first, len(asked), 200):
                replies[number] = other.generate(asked[number])

        threads = [threading.Thread(target=caller, args=(first,)) for first in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [reply.token_ids for reply in replies if reply is not None] == expected


def test_threads_that_step_on_a_closing_engine_all_get_an_answer() -> None:
    made = engine()
    answers: list[Exception] = []

    def caller(agent: int) -> None:
        try:
            while True:
                made.agent(agent).generate([1, 2, 3], max_tokens=3)
        except Exception as error:
            answers.append(error)

    threads = [threading.Thread(target=caller, args=(agent,)) for agent in range(20)]
    for thread in threads:
        thread.start()
    made.close()
    for thread in threads:
        thread.join(timeout=60)
    assert len(answers) == 20
    assert {type(error).__name__ for error in answers} == {"EngineClosedError"}
