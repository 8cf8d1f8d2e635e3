"""What the adapters say and whom they name, on stand-ins with the frameworks' own names."""

from __future__ import annotations

import asyncio
import copy
import random
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any
from weakref import WeakMethod

import pytest

from scalesim.integrations import agentsociety, concordia, mesa, oasis, tinytroupe
from tests.integrations.fakes import AsyncNotebook, Notebook

# -- Concordia ----------------------------------------------------------------------------------


def test_a_language_model_of_an_agent() -> None:
    engine = Notebook()
    model = concordia.AgentModel(engine, "rules", max_tokens=50, priority=2)
    text = model.sample_text("It rains.", max_tokens=2200, terminators=("\n",), timeout=5.0, seed=3)
    assert text == "rules speaks"
    ada = model.of("Ada")
    ada.sample_text("It rains.", max_tokens=9)
    [(_, prompt, first), (name, _, second)] = engine.calls
    assert [message["role"] for message in prompt] == ["system", "user"]
    assert prompt[1]["content"] == "It rains." and name == "Ada"
    said = {"max_tokens": 50, "stop": ("\n",), "timeout": 5.0, "seed": 3}
    assert said.items() <= first.items()
    assert first["priority"] == second["priority"] == 2 and "seed" not in second
    assert second["max_tokens"] == 9
    assert engine.told == [("expect", {"rules": 0})]  # a game master stays near, Ada does not


def test_a_choice_is_made_by_log_probabilities() -> None:
    engine = Notebook()
    model = concordia.AgentModel(engine, "Ada", instructions=None)
    index, response, info = model.sample_choice("Who?", ["nobody", "Bob", "Cleo"], seed=1)
    assert (index, response) == (1, "Bob") and info == {"logprobs": [-6.0, -3.0, -4.0]}
    assert engine.calls[0][1] == "Who?"  # without instructions, the bare text


class FixedOrder:
    """A component with the state of Concordia's ``NextActingInFixedOrder``."""

    def __init__(self, sequence: list[str], index: int | None) -> None:
        self.state = {"sequence": sequence, "currently_active_player_idx": index}

    def get_state(self) -> dict[str, Any]:
        return self.state


class Master:
    name = "rules"

    def __init__(self, component: Any) -> None:
        self.component = component

    def get_component(self, key: str) -> Any:
        return {concordia.NEXT_ACTING: self.component}[key]


@pytest.mark.parametrize(
    ("index", "turns"),
    [
        (0, {"Ada": 3.0, "Bob": 1.0, "Cleo": 2.0}),
        (2, {"Ada": 1.0, "Bob": 2.0, "Cleo": 3.0}),
        (None, {}),
    ],
)
def test_turns_of_a_fixed_order(index: int | None, turns: dict[str, float]) -> None:
    master = Master(FixedOrder(["Ada", "Bob", "Cleo"], index))
    assert concordia.turns_ahead(master) == turns


def test_turns_of_an_entity_that_acts_twice() -> None:
    assert concordia.turns_ahead(Master(FixedOrder(["Ada", "Bob", "Ada"], 0))) == {
        "Ada": 2.0,
        "Bob": 1.0,
    }


@pytest.mark.parametrize("component", [object(), FixedOrder([], 0)])
def test_no_order_is_no_hint(component: Any) -> None:
    assert concordia.turns_ahead(Master(component)) == {}
    assert concordia.turns_ahead(object()) == {}


@pytest.mark.parametrize("together", [False, True])
def test_an_engine_of_concordia_says_who_acts(together: bool) -> None:
    people = [SimpleNamespace(name=name) for name in ("Ada", "Bob", "Cleo")]

    class Turns:
        def next_acting(self, master: Any, entities: Any, log: Any = None) -> Any:
            assert log == "log"
            return (entities[:2], ["spec"] * 2) if together else (entities[0], "spec")

    engine = Notebook()
    turns = concordia.announce(Turns(), concordia.AgentModel(engine))
    master = Master(object() if together else FixedOrder(["Ada", "Bob", "Cleo"], 0))
    chosen = turns.next_acting(master, people, log="log")
    assert chosen[1] == (["spec", "spec"] if together else "spec")
    now = {"Ada": 0.0, "Bob": 0.0} if together else {"Ada": 0.0, "Bob": 1.0, "Cleo": 2.0}
    assert engine.told == [("tick", 1), ("expect", now)]


def test_each_entity_is_built_with_a_model_of_its_own() -> None:
    class Prefab:
        def __init__(self) -> None:
            self.params: dict[str, Any] = {"name": "nobody"}
            self.entities: Any = ()
            self.description = "a person"

        def build(self, model: Any, memory_bank: Any) -> Any:
            return SimpleNamespace(name=self.params["name"], model=model, bank=memory_bank)

    model = concordia.AgentModel(Notebook(), "rules")
    prefabs = concordia.own_models({"person": Prefab(), "master": Prefab()}, ["person"])
    built = []
    for name in ("Ada", "Bob"):
        prefab = copy.deepcopy(prefabs["person"])  # as Concordia's simulation does
        prefab.params = {"name": name}
        built.append(prefab.build(model=model, memory_bank=name))
    assert [(entity.name, entity.model.name, entity.bank) for entity in built] == [
        ("Ada", "Ada", "Ada"),
        ("Bob", "Bob", "Bob"),
    ]
    assert prefabs["person"].description == "a person"
    assert prefabs["master"].build(model=model, memory_bank=None).model is model


# -- Mesa ---------------------------------------------------------------------------------------


class Person:
    def __init__(self, unique_id: int) -> None:
        self.unique_id = unique_id
        self.llm = SimpleNamespace(llm_model="openai/m")
        self.memory = SimpleNamespace(llm=SimpleNamespace(llm_model="openai/m"))

    def speak(self) -> None: ...


class Generator:
    """Of recurring events, as Mesa's ``EventGenerator``: it has the method, or refers to it."""

    schedule = "each tick"

    def __init__(self, function: Any, *, weak: bool = False) -> None:
        self.function = WeakMethod(function) if weak else function

    def run(self) -> None: ...


class Events:
    def __init__(self) -> None:
        self.events: list[tuple[float, Any]] = []

    def is_empty(self) -> bool:
        return not self.events

    def peek_ahead(self, n: int) -> list[Any]:
        if not self.events:
            raise IndexError("event list is empty")
        found = sorted(self.events, key=lambda event: event[0])[:n]
        return [SimpleNamespace(time=time, fn=lambda call=call: call) for time, call in found]


class Town:
    def __init__(self) -> None:
        self.time = 0.0
        self.agents = [Person(1), Person(2), Person(3)]
        self._event_list = Events()

    def do_step(self) -> None: ...


def test_mesa_agents_are_named_once() -> None:
    town = Town()
    del town.agents[2].memory.llm
    for _ in range(2):
        mesa.identify(town.agents)
    assert [agent.llm.llm_model for agent in town.agents] == [
        "openai/m@1",
        "openai/m@2",
        "openai/m@3",
    ]
    assert town.agents[0].memory.llm.llm_model == "openai/m@1"


def test_events_become_hints_and_are_said_once() -> None:
    town, engine = Town(), Notebook()
    one, two, three = town.agents
    events = town._event_list.events
    events += [(5.0, one.speak), (2.0, one.speak), (4.0, Generator(two.speak).run), (1.0, print)]
    events += [(7.0, partial(three.speak)), (3.0, None)]
    announcer = mesa.Announcer(town, engine)
    announcer.tell()
    announcer.tell()
    town.time = 2.0
    events.remove((2.0, one.speak))
    announcer.moved(None)
    announcer.moved(None)
    assert engine.told == [
        ("expect", {"1": 2.0, "2": 4.0, "3": 7.0}),
        ("tick", 2.0),
        ("expect", {"1": 3.0}),
    ]


def test_a_step_of_the_model_is_everybodys() -> None:
    town, engine = Town(), Notebook()
    town._event_list.events += [(0.5, town.agents[1].speak), (1.0, Generator(town.do_step).run)]
    mesa.Announcer(town, engine).tell()
    assert engine.expected == [{"2": 0.5, "1": 1.0, "3": 1.0}]
    quiet = Notebook()
    mesa.Announcer(town, quiet, steps_all=False).tell()
    assert quiet.expected == [{"2": 0.5}]


def test_no_events_are_no_hints() -> None:
    engine = Notebook()
    mesa.Announcer(Town(), engine).tell()
    assert engine.told == []


# -- OASIS --------------------------------------------------------------------------------------


class Manager:
    """As CAMEL's ``ModelManager``."""

    def __init__(self, models: list[Any], scheduling_strategy: str = "round_robin") -> None:
        self.models, self.name = models, scheduling_strategy

    @property
    def scheduling_strategy(self) -> Any:
        return SimpleNamespace(__name__=self.name)


def user(id: int, model: Any) -> Any:
    return _User(id, Manager([model], "random_model"))


class _User:
    def __init__(self, id: int, manager: Manager) -> None:
        self.social_agent_id, self.model_backend = id, manager


def test_oasis_agents_get_models_that_name_them() -> None:
    shared = SimpleNamespace(model_config_dict={"seed": 1, "extra_body": {"top_k": 5}}, client="c")
    users = [user(id, shared) for id in (4, 5)]
    oasis.identify(users)
    bodies = [each.model_backend.models[0].model_config_dict for each in users]
    assert bodies == [{"seed": 1, "extra_body": {"top_k": 5, "agent_id": id}} for id in ("4", "5")]
    assert users[0].model_backend.models[0].client == "c"
    assert users[0].model_backend.name == "random_model"
    assert shared.model_config_dict["extra_body"] == {"top_k": 5}


LLM = SimpleNamespace()
POST = SimpleNamespace(action_type=SimpleNamespace(value="create_post"))
INTERVIEW = SimpleNamespace(action_type=SimpleNamespace(value="interview"))


@pytest.mark.parametrize("kind", [Notebook, AsyncNotebook])
def test_oasis_says_who_is_active_before_it_steps(kind: type[Notebook]) -> None:
    engine, seen = kind(), []

    class Env:
        async def step(self, actions: Any) -> str:
            seen.append(list(engine.told))
            return "stepped"

    users = [user(id, SimpleNamespace(model_config_dict={})) for id in range(4)]
    env = oasis.announce(Env(), engine)
    actions = dict(zip(users, [LLM, POST, [POST, LLM], INTERVIEW], strict=True))
    assert asyncio.run(env.step(actions)) == "stepped"
    active = {"0": 0.0, "2": pytest.approx(1 / 3), "3": pytest.approx(2 / 3)}
    assert seen == [[("expect", active)]]
    assert engine.told[1:] == [("tick", 1)]


# -- AgentSociety -------------------------------------------------------------------------------


class Dispatcher:
    model_name = "m"

    def __init__(self, role: dict[str, Any] | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self.thinking = role and SimpleNamespace(request_kwargs=lambda: {"extra_body": role})

    async def call(self, **kwargs: Any) -> str:
        self.sent.append(kwargs)
        return "said"


class PersonAgent:
    id = 7
    _dispatcher: Any

    def _bind_services(self, proxy: Any) -> None:
        self._dispatcher = proxy

    async def speak(self, **kwargs: Any) -> Any:
        return await self._dispatcher.call(messages=[], **kwargs)


class Citizen(agentsociety.NamedCalls, PersonAgent):
    pass


@pytest.mark.parametrize(
    ("role", "given", "sent"),
    [
        (None, {}, {}),
        (None, {"extra_body": {"a": 1}}, {"a": 1}),
        ({"think": True}, {}, {"think": True}),
        ({"think": True}, {"extra_body": {"a": 1}}, {"a": 1}),
        ({"think": True}, {"thinking": "off"}, {}),
    ],
)
def test_a_citizen_names_its_calls(
    role: dict[str, Any] | None, given: dict[str, Any], sent: dict[str, Any]
) -> None:
    dispatcher, citizen = Dispatcher(role), Citizen()
    citizen._bind_services(dispatcher)
    assert asyncio.run(citizen.speak(**given)) == "said"
    assert dispatcher.sent[0]["extra_body"] == {**sent, "agent_id": "7"}
    assert citizen._dispatcher.model_name == "m"


@pytest.mark.parametrize("kind", [Notebook, AsyncNotebook])
def test_a_society_says_its_order(kind: type[Notebook]) -> None:
    class Society:
        _agent_ids = (3, 1)

        async def step(self, tick: int) -> int:
            return tick

    engine = kind()
    society = agentsociety.announce(Society(), engine)
    assert asyncio.run(society.step(300)) == 300
    assert engine.told == [("expect", {"3": 0.0, "1": 0.5}), ("tick", 1)]


# -- TinyTroupe ---------------------------------------------------------------------------------


class Client:
    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def _raw_model_call(self, model: str, chat_api_params: dict[str, Any]) -> str:
        self.sent.append(chat_api_params)
        return model


def world_of(names: list[str], acted: list[str], client: Any = None) -> Any:
    class TinyPerson:
        def __init__(self, name: str) -> None:
            self.name = name

        def act(self) -> None:
            acted.append(self.name)
            if client is not None:
                client._raw_model_call("m", {"messages": []})

    class World:
        def __init__(self) -> None:
            self.agents = [TinyPerson(name) for name in names]

        def _step_sequentially(
            self, timedelta_per_step: Any = None, randomize_agents_order: bool = True
        ) -> None:
            order = copy.copy(self.agents)
            if randomize_agents_order:
                random.shuffle(order)
            for person in order:
                person.act()

        def _step_in_parallel(self, timedelta_per_step: Any = None) -> None:
            for person in self.agents:
                person.act()

    return World(), TinyPerson


def test_who_acts_is_named() -> None:
    client, acted = tinytroupe.named_client(Client)(), []
    world, kind = world_of(["Lisa", "Oscar"], acted, client)
    tinytroupe.identify(kind)
    tinytroupe.identify(kind)
    world._step_in_parallel()
    client._raw_model_call("m", {"extra_body": {"a": 1}})  # a call of nobody's
    assert [params.get("extra_body") for params in client.sent] == [
        {"agent_id": "Lisa"},
        {"agent_id": "Oscar"},
        {"a": 1},
    ]
    assert acted == ["Lisa", "Oscar"]


@pytest.mark.parametrize("is_random", [True, False])
def test_a_world_says_its_order_and_draws_it_as_before(is_random: bool) -> None:
    names, engine = [f"p{i}" for i in range(9)], Notebook()
    plain: list[str] = []
    acted: list[str] = []
    untold, _ = world_of(names, plain)
    told = tinytroupe.announce(world_of(names, acted)[0], engine)
    for world in (untold, told):
        random.seed(5)
        for _ in range(2):
            world._step_sequentially(randomize_agents_order=is_random)
    assert acted == plain
    first, second = engine.expected
    assert sorted(first, key=first.__getitem__) == acted[:9]
    assert sorted(second, key=second.__getitem__) == acted[9:]
    assert [person.name for person in told.agents] == names


def test_a_world_in_parallel_says_who_acts() -> None:
    engine = Notebook()
    tinytroupe.announce(world_of(["a", "b"], [])[0], engine)._step_in_parallel()
    assert engine.told == [("expect", {"a": 0.0, "b": 0.5}), ("tick", 1)]


@pytest.mark.parametrize("weak", [False, True])
def test_a_recurring_event_has_the_owner_of_its_method(weak: bool) -> None:
    """The method is looked at; to call it would be to let the agent act."""

    class Actor(Person):
        def speak(self) -> None:
            raise AssertionError("it was called")

    actor = Actor(1)
    assert mesa.owner_of(Generator(actor.speak, weak=weak).run) is actor


def test_a_function_has_an_owner_only_as_a_method() -> None:
    person = Person(1)
    assert mesa.owner_of(MethodType(Person.speak, person)) is person
    assert mesa.owner_of(print) is mesa.owner_of(None) is None
