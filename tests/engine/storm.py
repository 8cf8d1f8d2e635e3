"""A storm of calls: cancelled, timed out, or read by iterators that leave, from threads and an
event loop, on the runner that checks every KV slot it reads.

``python -m tests.engine.storm`` runs 10 000 and prints how they ended. Everybody who got a reply
must have got the expected text, who left early the beginning of it; all pages must be free.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scalesim.engine.engine import Engine
from scalesim.errors import RequestTimeoutError
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from scalesim.testing.tag_parts import tag_parts
from scalesim.testing.tags import expected_text
from tests.engine.test_same_texts import check_empty
from tests.inside import part

VOCAB = 512
NUM_AGENTS = 150
PREFIX = 48
WORKERS = 120  # tasks of the event loop; and
THREADS = 12


@dataclass(frozen=True)
class Order:
    """One call, and what its caller will do to it."""

    request: Request
    manner: str
    patience: int  # pieces that are read, or milliseconds until it is cancelled
    text: tuple[int, ...]


MANNERS = ("wait", "read", "break", "raise", "drop", "cancel")


@dataclass
class Storm:
    """``run`` makes ``num_calls`` calls; ``ended`` counts how, ``wrong`` lists bad texts."""

    num_calls: int
    seed: int
    steps_in_flight: int = 1
    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def run(self) -> Engine:
        """The engine, closed."""
        engine = Engine(
            tag_parts(
                device_pages=NUM_AGENTS, host_pages=3 * NUM_AGENTS, max_num_seqs=24,
                vocab_size=VOCAB, steps_in_flight=self.steps_in_flight, max_open_requests=64,
            )
        )  # fmt: skip
        for agent in range(NUM_AGENTS):
            engine.agent(agent)
        orders = list(self.orders())
        split = len(orders) * 2 // 3
        with engine:
            waves = threading.Thread(target=self._threads, args=(engine, orders[split:]))
            waves.start()
            asyncio.run(self._tasks(engine, iter(orders[:split])))
            waves.join()
            for _ in range(3):  # what was cancelled last has left when these have their replies
                engine.agent(0).generate([1, 2, 3], max_tokens=3)
            assert engine.parts.scheduler.num_running == engine.parts.scheduler.num_waiting == 0
            assert part(engine, RequestLimiter).num_free == part(engine, RequestLimiter).limit
        return engine

    def orders(self) -> Iterator[Order]:
        rng, dice = np.random.default_rng(self.seed), random.Random(self.seed)
        prefixes = rng.integers(0, VOCAB, (NUM_AGENTS, PREFIX)).tolist()
        for number in range(self.num_calls):
            agent = dice.randrange(NUM_AGENTS)
            prompt = [*prefixes[agent], *rng.integers(0, VOCAB, dice.randrange(1, 40)).tolist()]
            count = dice.choice((1, 3, 10, 40, 90))
            params = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
            timeout = dice.choice((None, None, None, 60.0, dice.uniform(1e-4, 0.05)))
            request = Request(
                prompt, agent, params, timeout=timeout, priority=dice.choice((0, 0, 0, -1, 2))
            )
            text = tuple(expected_text(prompt, count, temperature=0.0, vocab_size=VOCAB))
            manner = "wait" if number % 3 == 0 else dice.choice(MANNERS)
            yield Order(request, manner, dice.randrange(0, 12), text)

    # -- callers ------------------------------------------------------------------------------

    def _threads(self, engine: Engine, orders: list[Order]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for ended in pool.map(lambda order: self._call(engine, order), orders):
                self.ended[ended] += 1

    async def _tasks(self, engine: Engine, orders: Iterator[Order]) -> None:
        async def worker() -> None:
            for order in orders:
                self.ended[await self._call_async(engine, order)] += 1

        await asyncio.gather(*(worker() for _ in range(WORKERS)))

    def _call(self, engine: Engine, order: Order) -> str:
        try:
            if order.manner in ("wait", "cancel"):
                return self._whole(order, engine.generate(order.request))
            stream = engine.stream(order.request)
            seen: list[int] = []
            if order.manner == "drop":
                return "left"
            for number, piece in enumerate(stream):
                seen += piece.token_ids
                if piece.reply is not None:
                    return self._whole(order, piece.reply, seen)
                if number >= order.patience and order.manner != "read":
                    if order.manner == "raise":
                        raise ZeroDivisionError
                    break
            return self._part(order, seen)
        except RequestTimeoutError:
            return "timed out"
        except ZeroDivisionError:
            return self._part(order, seen)

    async def _call_async(self, engine: Engine, order: Order) -> str:
        try:
            if order.manner in ("wait", "cancel"):
                task = asyncio.ensure_future(engine.generate_async(order.request))
                if order.manner == "cancel":
                    asyncio.get_running_loop().call_later(order.patience / 1e3, task.cancel)
                return self._whole(order, await task)
            stream = engine.stream_async(order.request)
            seen: list[int] = []
            if order.manner == "drop":
                return "left"
            number = 0
            async for piece in stream:
                seen += piece.token_ids
                if piece.reply is not None:
                    return self._whole(order, piece.reply, seen)
                if number >= order.patience and order.manner != "read":
                    if order.manner == "raise":
                        raise ZeroDivisionError
                    break
                number += 1
            return self._part(order, seen)
        except asyncio.CancelledError:
            return "cancelled"
        except RequestTimeoutError:
            return "timed out"
        except ZeroDivisionError:
            return self._part(order, seen)

    # -- what they saw ------------------------------------------------------------------------

    def _whole(self, order: Order, reply: Reply, seen: list[int] | None = None) -> str:
        if reply.token_ids != order.text or (seen is not None and tuple(seen) != order.text):
            self.wrong.append(f"{order.manner}: {reply.token_ids} is not {order.text}")
        return "replied"

    def _part(self, order: Order, seen: list[int]) -> str:
        if tuple(seen) != order.text[: len(seen)]:
            self.wrong.append(f"{order.manner}: {seen} does not begin {order.text}")
        return "left"


def check(storm: Storm) -> Counter[str]:
    """Run it; every call accounted for, no text wrong, all pages free."""
    engine = storm.run()
    assert not storm.wrong, storm.wrong[:3]
    assert storm.ended.total() == storm.num_calls
    check_empty(engine)
    return storm.ended


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.storm", description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options: Any = parser.parse_args(arguments)
    for steps_in_flight in (1, 2):
        ended = check(Storm(options.calls, options.seed, steps_in_flight))
        print(f"{steps_in_flight} in flight: {options.calls} calls, {dict(ended)}; "
              "no text changed, all pages free")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
