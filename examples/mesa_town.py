"""A town in Mesa on ScaleSim: sixteen people who speak at times of their own, through mesa-llm.

    pip install '.[server]' mesa-llm
    python examples/mesa_town.py [MODEL]

Runs the same simulation twice, without hints and with those of Mesa's list of events, and prints
how often an agent's state was on the device when it was needed. mesa-llm speaks HTTP, so the engine
is served from this process; with ``--url`` the calls go to a ``scalesim serve`` that runs already.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OPENAI_API_KEY", "none")
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

from mesa import Model
from mesa_llm.llm_agent import LLMAgent
from mesa_llm.reasoning.cot import CoTReasoning

from scalesim.client import Client
from scalesim.integrations.mesa import announce, identify

sys.path.insert(0, str(Path(__file__).parent))
if "--url" not in sys.argv:  # what serves a model needs torch; a client does not
    from hit_rate import HitRate, hit_rate
    from small_model import open_engine

    from scalesim.proxy.program import served
    from scalesim.server.app import make_app
    from scalesim.server.config import ServerConfig

PEOPLE, TICKS = 16, 40
TOWN = "The town has a mill, a school, a pier and a market. Everybody knows everybody. "


class Person(LLMAgent):
    """Speaks every few ticks, and remembers what was said."""

    def __init__(self, model: Town, url: str) -> None:
        super().__init__(
            model,
            reasoning=CoTReasoning,
            llm_model="openai/model",
            system_prompt=TOWN + f"You are person {model.agent_id_counter} of the town. " * 8,
            api_base=f"{url}/v1",
        )
        self.said: list[str] = []
        self.pause = 3 + 7 * self.unique_id % 11
        model.schedule_event(self.speak, after=self.pause)

    def speak(self) -> None:
        self.said.append(f"It is {self.model.time:g} o'clock.")
        answer = self.llm.generate(self.said)
        self.said.append(f"I said: {answer.choices[0].message.content}")
        self.model.schedule_event(self.speak, after=self.pause)


class Town(Model):
    """The people of ``url``'s server; with ``hints``, the server hears of their events."""

    def __init__(self, url: str, *, hints: bool) -> None:
        super().__init__(rng=7)
        for _ in range(PEOPLE):
            Person(self, url)
        identify(self.agents)
        self.client = Client(url)
        if hints:
            announce(self, self.client)


def play(url: str, *, hints: bool) -> None:
    town = Town(url, hints=hints)
    with town.client:
        town.run_for(TICKS)


def play_in_process(chosen: str | None, *, hints: bool) -> HitRate:
    with open_engine(chosen, device_memory="1500kB") as engine:
        app = make_app(engine, ServerConfig())
        with served(lambda: app) as url:
            play(url, hints=hints)
            return hit_rate(engine)


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--url"]:
        play(arguments[1], hints="--no-hints" not in arguments)
        return
    chosen = arguments[0] if arguments else None
    for hints in (False, True):
        found = play_in_process(chosen, hints=hints)
        print(f"{'with' if hints else 'without'} hints: {found}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
