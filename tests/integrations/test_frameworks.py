"""The adapters on the frameworks themselves: ``nox -s integrations``. Skipped where one is missing.

Concordia and mesa-llm run their examples with an engine. The others talk to a small server that
writes down what it is sent, because their own tools decide what they say.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator
from operator import methodcaller
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from scalesim.integrations import agentsociety, mesa, oasis
from scalesim.proxy.program import served
from tests.integrations.fakes import Notebook
from tests.proxy.upstream import Upstream

pytestmark = [pytest.mark.framework, pytest.mark.filterwarnings("default")]
EXAMPLES = Path(__file__).parents[2] / "examples"


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; nox -s integrations installs it")


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Upstream, str]]:
    """A server and its URL; the working folder is an empty one, in which frameworks keep logs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    server = Upstream()
    with served(server.app) as url:
        yield server, f"{url}/v1"


def test_concordia_finds_more_with_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("concordia")
    village = example("concordia_village", monkeypatch)
    without, hinted = (village.play(None, hints=hints, steps=14) for hints in (False, True))
    assert hinted.calls == without.calls > 100
    assert hinted.waited < without.waited and hinted.used > 0


def test_mesa_finds_more_with_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mesa_llm")
    pytest.importorskip("torch")
    town = example("mesa_town", monkeypatch)
    without, hinted = (town.play_in_process(None, hints=hints) for hints in (False, True))
    assert hinted.calls == without.calls > 50
    assert hinted.waited < without.waited and hinted.used > 0


def test_mesa_names_agents_and_tells_events(upstream: tuple[Upstream, str]) -> None:
    needs("mesa_llm")
    from mesa import Model
    from mesa.time import Schedule
    from mesa_llm.llm_agent import LLMAgent
    from mesa_llm.reasoning.cot import CoTReasoning

    server, url = upstream

    class Person(LLMAgent):
        def speak(self) -> None:
            self.llm.generate("who are you?")

    people = Model(rng=1)
    for _ in range(3):
        Person(people, reasoning=CoTReasoning, llm_model="openai/m", api_base=url)
    one, two, three = people.agents
    mesa.identify(people.agents)
    people.schedule_event(one.speak, at=3.0)
    people.schedule_event(one.speak, at=1.5)
    people.schedule_recurring(two.speak, Schedule(interval=2.0, start=2.0))
    engine = Notebook()
    announcer = mesa.announce(people, engine)
    assert engine.expected == [{"1": 1.5, "2": 2.0}]
    people.run_until(3.5)
    assert [body["model"] for body in server.bodies] == ["m@1", "m@2", "m@1"]
    assert {"1": pytest.approx(1.5)} in engine.expected  # at 1.5: again at 3
    assert sum(ticks for kind, ticks in engine.told if kind == "tick") == pytest.approx(3.5)
    announcer.close()
    told = len(engine.told)
    people.run_until(9.0)
    assert len(engine.told) == told and three.unique_id == 3


def test_oasis_names_agents_and_tells_who_is_active(
    upstream: tuple[Upstream, str], tmp_path: Path
) -> None:
    needs("oasis")
    (tmp_path / "log").mkdir()  # it is written to on import
    import oasis as framework
    from camel.models import ModelFactory
    from camel.types import ModelPlatformType
    from camel.utils import BaseTokenCounter

    class Letters(BaseTokenCounter):  # CAMEL's own downloads its vocabulary
        def count_tokens_from_messages(self, messages: Any) -> int:
            return len(str(messages))

        def encode(self, text: str) -> list[int]:
            return list(text.encode())

        def decode(self, token_ids: list[int]) -> str:
            return bytes(token_ids).decode()

    server, url = upstream
    model = ModelFactory.create(
        model_platform=ModelPlatformType.VLLM,
        model_type="m",
        url=url,
        api_key="none",
        token_counter=Letters(),
    )
    engine = Notebook()

    async def play() -> None:
        graph = framework.AgentGraph()
        for id in range(3):
            info = framework.UserInfo(
                user_name=f"u{id}", name=f"User {id}", description="a user", profile=None,
                recsys_type="reddit",
            )  # fmt: skip
            graph.add_agent(framework.SocialAgent(agent_id=id, user_info=info, model=model))
        env = framework.make(
            agent_graph=graph,
            platform=framework.DefaultPlatformType.REDDIT,
            database_path=str(tmp_path / "reddit.db"),
        )
        await env.reset()
        users = [agent for _, agent in env.agent_graph.get_agents()]
        oasis.identify(users)
        oasis.announce(env, engine)
        post = framework.ManualAction(
            action_type=framework.ActionType.CREATE_POST, action_args={"content": "Hello"}
        )
        await env.step({users[0]: post})
        await env.step({users[2]: framework.LLMAction(), users[1]: framework.LLMAction()})
        await env.close()

    asyncio.run(play())
    assert sorted(body["agent_id"] for body in server.bodies) == ["1", "2"]
    assert all(body["tools"] for body in server.bodies)
    assert engine.told == [
        ("expect", {}), ("tick", 1), ("expect", {"2": 0.0, "1": 0.5}), ("tick", 1),
    ]  # fmt: skip


def test_agentsociety_names_agents(
    upstream: tuple[Upstream, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("agentsociety2")
    server, url = upstream
    for name, value in {
        **agentsociety.ENVIRONMENT,
        "AGENTSOCIETY_LLM_API_KEY": "none",
        "AGENTSOCIETY_LLM_API_BASE": url,
        "AGENTSOCIETY_LLM_MODEL": "m",
    }.items():
        monkeypatch.setenv(name, value)
    from agentsociety2.agent.base.agent import AgentBase
    from agentsociety2.config import llm_dispatcher

    assert float("inf") == llm_dispatcher.Config.LLM_LATENCY_DEGRADE_FACTOR

    class Citizen(agentsociety.NamedCalls, AgentBase):  # type: ignore[misc]
        id = 7

    async def speak() -> Any:
        client = llm_dispatcher.LLMClient(model_name="m", base_url=url, api_key="none")
        citizen = Citizen.__new__(Citizen)
        proxy = SimpleNamespace(env=None, llm=SimpleNamespace(default=client))
        methodcaller("_bind_services", proxy)(citizen)  # as the framework does
        return await citizen.acompletion([{"role": "user", "content": "Who are you?"}])

    Citizen.__abstractmethods__ = frozenset()
    said = asyncio.run(speak())
    assert said.choices[0].message.content == "I wave hello."
    assert [body["agent_id"] for body in server.bodies] == ["7"]
