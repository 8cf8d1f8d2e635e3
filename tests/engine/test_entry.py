"""What callers give is checked where it enters: every parameter of every public call, and every
field of every public record, with values of wrong types, units and ranges.

A value is taken, or refused with an error of ``scalesim.errors`` that is short; nothing of it
reaches the engine's thread: the engine has not begun anew, and says to a neighbour what it always
says. Parameters and fields are found by inspection: one that the table does not know fails.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import scalesim
import scalesim.distance
from scalesim import Agent, ChatRequest, Engine, EngineConfig, Request, SamplingParams, errors
from scalesim.config import CallLimits, SchedulerConfig, StructureConfig, parse_bytes
from scalesim.distance import (
    Activation,
    Graph,
    Learned,
    Plan,
    Predrawn,
    Proximity,
    Turns,
)
from scalesim.distance.estimates import NOTHING, Estimates, Source
from scalesim.engine.inbox import Inbox
from scalesim.engine.memory_view import MemoryView
from scalesim.errors import ScaleSimError
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.model.values import TENSORS
from scalesim.requests.adapter import Adapter
from scalesim.requests.adapter_registry import AdapterRegistry
from scalesim.requests.call import Call
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.reply import Reply
from tests.engine.world import SHAPE, tiny_engine
from tests.inside import part
from tests.model_folders import write_dummy_model

LONGEST = 700  # characters of a message


class Broken:
    """Whatever is asked of it fails."""

    def fail(self, *_: object, **__: object) -> NoReturn:
        raise KeyError("broken")

    __len__ = __iter__ = __getitem__ = __eq__ = __bool__ = __contains__ = fail  # type: ignore[assignment]
    __float__ = __int__ = __index__ = __repr__ = __str__ = __hash__ = fail  # type: ignore[assignment]
    __lt__ = __gt__ = __le__ = __ge__ = __fspath__ = __array__ = __add__ = fail  # type: ignore[assignment]


class BrokenDict(dict[Any, Any]):
    items = keys = values = __iter__ = __len__ = __getitem__ = get = Broken.fail  # type: ignore[assignment]


class BrokenList(list[Any]):
    __len__ = __iter__ = __getitem__ = Broken.fail  # type: ignore[assignment]


class Equal:
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class BrokenText(str):
    __len__ = __bool__ = __iter__ = __eq__ = __str__ = __repr__ = encode = Broken.fail  # type: ignore[assignment]
    __hash__ = str.__hash__


def letters() -> Iterator[str]:
    yield "a"


VALUES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "true": lambda: True,
    "numpy true": lambda: np.bool_(True),
    "minus one": lambda: -1,
    "too large": lambda: 2**63,
    "too small": lambda: -(2**63) - 1,
    "5000 digits": lambda: 10**5000,
    "half": lambda: 0.5,
    "nan": lambda: math.nan,
    "numpy nan": lambda: np.float32(math.nan),
    "inf": lambda: math.inf,
    "huge": lambda: 1e300,
    "complex": lambda: 5j,
    "text": lambda: "1s",
    "empty text": lambda: "",
    "surrogate": lambda: "\ud800",
    "zero byte": lambda: "\0",
    "megabyte": lambda: "y" * 1_000_000 + "\0",
    "bytes": lambda: b"a",
    "list": list,
    "list of none": lambda: [None],
    "ragged list": lambda: [[1], [2, 3]],
    "list of large": lambda: [10**5000],
    "dict": dict,
    "dict of dict": lambda: {"a": {"b": object()}},
    "set": lambda: {1, 2},
    "generator": letters,
    "array": lambda: np.ones((2, 2)),
    "scalar array": lambda: np.array(3),
    "object": object,
    "ellipsis": lambda: ...,
    "broken": Broken,
    "broken dict": lambda: BrokenDict(a=1),
    "broken list": lambda: BrokenList([1]),
    "broken text": lambda: BrokenText("abc"),
    "equal": Equal,
    "class": lambda: Learned,
}
CALLABLE = ("class",)
TEXTS = ("text", "broken text", "megabyte", "zero byte", "surrogate")


@dataclasses.dataclass(frozen=True)
class Entry:
    """``call(**valid)`` is right. ``without``: values that are not tried for a parameter, because
    they are right there and do harm (a function that fails when it is called, a model to be
    downloaded)."""

    call: Callable[..., Any]
    valid: dict[str, Any]
    without: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def waited(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **given: asyncio.run(method(**given))


def read_out(method: Callable[..., Any]) -> Callable[..., Any]:
    """A stream, to its end."""
    return lambda **given: list(method(**given))


def read_async(method: Callable[..., Any]) -> Callable[..., Any]:
    async def read(**given: Any) -> list[Any]:
        return [piece async for piece in method(**given)]

    return waited(read)


def fresh(make: Callable[[], Any], name: str) -> Callable[..., Any]:
    """``name`` of a new object, then what is new in it."""

    def call(**given: Any) -> Any:
        source = make()
        result = getattr(source, name)(**given)
        source.changes(1.0)
        return result

    return call


def source_made(kind: type) -> Callable[..., Any]:
    def call(**given: Any) -> Any:
        source = kind(**given)
        for now in (0.0, 1.0):
            source.changes(now)
            source.called("a", now)
        return source

    return call


SHORT = SamplingParams(max_tokens=1, seed=1)
ASKED = Request("hi", params=SHORT)
CHATTED = ChatRequest("hi", params=SHORT)
OPTIONS = {"max_tokens": 1, "seed": 1}
POSITIONS = [(0.0, 0.0), (5.0, 5.0)]


class Own(Source):
    name = "own"

    def changes(self, now: float) -> Estimates:
        return NOTHING


def asked(engine: Engine) -> Callable[..., Any]:
    def call(**fields: Any) -> Any:
        return engine.generate(Request(**{"params": SHORT, **fields}))

    return call


def chatted(engine: Engine) -> Callable[..., Any]:
    def call(**fields: Any) -> Any:
        return engine.chat(ChatRequest(**{"params": SHORT, **fields}))

    return call


def drawn(engine: Engine) -> Callable[..., Any]:
    def call(**fields: Any) -> Any:
        prompt = [1, 2, 3]
        return engine.generate(Request(prompt, params=SamplingParams(**{**OPTIONS, **fields})))

    return call


def prompting(call: Callable[..., Any], **more: Any) -> Entry:
    return Entry(lambda prompt, **given: call(prompt=prompt, **given, **OPTIONS),
                 {"prompt": "hi", **more})  # fmt: skip


def talking(call: Callable[..., Any]) -> Entry:
    return Entry(lambda messages: call(messages=messages, **OPTIONS),
                 {"messages": [{"role": "user", "content": "hi"}]})  # fmt: skip


def entries(engine: Engine, folder: Path) -> dict[str, Entry]:
    """Everything public, by name."""
    ada = engine.agent("ada")
    others = iter(range(10**9))

    def built(**given: Any) -> None:
        Engine(**{"model": folder, "device": "cpu", **given}).close()

    def chosen(method: Callable[..., Any]) -> Entry:
        return Entry(method, {"request": ASKED, "options": ["a", [1]], "by": "sum"})

    def embedded(method: Callable[..., Any]) -> Entry:
        given = {"prompts": ["a"], "pooling": "last", "normalize": True}
        return Entry(method, given)

    def chosen_by(method: Callable[..., Any]) -> Entry:
        return Entry(method, {"prompt": "hi", "options": ["a"], "by": "sum"})

    functions = {"on_overflow": CALLABLE, "mask": CALLABLE}
    return {
        "Request": Entry(asked(engine), _fields(Request) | {"prompt": "hi", "params": SHORT},
                         functions),
        "ChatRequest": Entry(
            chatted(engine), _fields(ChatRequest) | {"messages": "hi", "params": SHORT}, functions),
        "SamplingParams": Entry(drawn(engine), _fields(SamplingParams) | OPTIONS, functions),
        "EngineConfig": Entry(EngineConfig, _fields(EngineConfig)),
        "SchedulerConfig": Entry(SchedulerConfig, _fields(SchedulerConfig)),
        "CallLimits": Entry(CallLimits, _fields(CallLimits)),
        "StructureConfig": Entry(StructureConfig, _fields(StructureConfig)),
        "PlannerConfig": Entry(PlannerConfig, _fields(PlannerConfig)),
        "parse_bytes": Entry(parse_bytes, {"text": "4GB", "name": "size"},
                             {"name": tuple(VALUES)}),
        "Engine": Entry(
            built,
            {"model": folder, "config": None, "dummy_weights": False, "sources": (),
             "combine": scalesim.distance.earliest_credible, "record": None},
            {"combine": CALLABLE, "model": TEXTS, "record": TEXTS},
        ),
        "Engine.run": Entry(engine.run, {"requests": [ASKED], "return_exceptions": False,
                                         "progress": False}, {"progress": ("class", "true")}),
        "Engine.generate": Entry(engine.generate, {"request": ASKED}),
        "Engine.generate_async": Entry(waited(engine.generate_async), {"request": ASKED}),
        "Engine.stream": Entry(read_out(engine.stream), {"request": ASKED}),
        "Engine.stream_async": Entry(read_async(engine.stream_async), {"request": ASKED}),
        "Engine.stream_samples_async": Entry(
            waited(engine.stream_samples_async), {"request": ASKED}
        ),
        "Engine.run_async": Entry(waited(engine.run_async),
                                  {"requests": [ASKED], "return_exceptions": False}),
        "Engine.chat": Entry(engine.chat, {"request": CHATTED}),
        "Engine.chat_async": Entry(waited(engine.chat_async), {"request": CHATTED}),
        "Engine.chat_stream": Entry(read_out(engine.chat_stream), {"request": CHATTED}),
        "Engine.chat_stream_async": Entry(
            read_async(engine.chat_stream_async), {"request": CHATTED}),
        "Engine.chat_turn": Entry(engine.chat_turn, {"request": CHATTED}),
        "Engine.choose": chosen(engine.choose),
        "Engine.choose_async": chosen(waited(engine.choose_async)),
        "Engine.embed": embedded(engine.embed),
        "Engine.embed_async": embedded(waited(engine.embed_async)),
        "Engine.submit": Entry(engine.submit, {"request": ASKED}),
        "Engine.cancel": Entry(engine.cancel, {"call": engine.submit(ASKED)}),
        "Engine.sampling": Entry(engine.sampling, {}),
        "Engine.agent": Entry(engine.agent, {"id": "bob", "adapter": None, "model": None}),
        "Engine.add_model": Entry(
            engine.add_model,
            {"name": "guard", "path": folder / "none", "dummy_weights": False, "replace": True}),
        "Engine.remove_model": Entry(engine.remove_model, {"name": "guard", "timeout": None}),
        "Engine.fork": Entry(
            lambda parent="ada", child=None: engine.fork(
                parent, f"child {next(others)}" if child is None else child),
            {"parent": "ada", "child": None}),
        "Engine.snapshot": Entry(
            lambda path, data: engine.snapshot(
                f"{folder}/{path}" if type(path) is str else path, data=data),
            {"path": "s", "data": b"mine"}),
        "Engine.fork_world": Entry(
            lambda **given: engine.fork_world(**given).close(),
            {"sources": (), "combine": scalesim.distance.earliest_credible},
            {"combine": CALLABLE}),
        "Engine.forget": Entry(
            lambda agents=None, wait=True: engine.forget(
                engine.agent(f"gone {next(others)}").id if agents is None else agents, wait=wait),
            {"agents": None, "wait": True}),
        "Agent.forget": Entry(
            lambda wait: engine.agent(f"gone {next(others)}").forget(wait=wait), {"wait": True}),
        "Engine.expect": Entry(
            lambda agents="ada", ticks=None, at=None, confidence=1.0, absolute=False, steps=None:
                engine.expect(agents, ticks, at=at, confidence=confidence, absolute=absolute,
                              steps=steps),
            {"agents": {"ada": 1.0}, "ticks": None, "at": None, "confidence": 1.0,
             "absolute": False, "steps": None}),
        "Engine.add_source": Entry(engine.add_source, {"source": Own()}),
        "Engine.why": Entry(engine.why, {"agent": "ada"}),
        "Engine.wake": Entry(engine.wake, {"agent": "ada"}),
        "Engine.tick": Entry(engine.tick, {"n": 1, "to": None}),
        "Engine.advance": Entry(engine.advance, {"to": None}),
        "MemoryView.view": Entry(engine.memory.view, {"agent": "ada"}),
        "MemoryView.view_async": Entry(waited(engine.memory.view_async), {"agent": "ada"}),
        "MemoryView.unknown": Entry(engine.memory.unknown, {"agents": ["ada"]}),
        "MemoryView.agents_under_async": Entry(
            waited(engine.memory.agents_under_async), {"tokens": [1, 2], "cache_salt": None}),
        "MemoryView.pin": Entry(engine.memory.pin, {"agents": ["ada"], "seconds": 1.0}),
        "MemoryView.release": Entry(engine.memory.release, {"agents": "ada"}),
        "MemoryView.demote": Entry(engine.memory.demote, {"agents": "ada"}),
        "Engine.register_kind": Entry(engine.register_kind, {"kind": TENSORS}),
        "AdapterRegistry.add": Entry(
            engine.adapters.add,
            {"name": "a", "path": folder / "none", "replace": False, "model": None}),
        "AdapterRegistry.remove": Entry(engine.adapters.remove, {"name": "a", "timeout": None}),
        "AdapterRegistry.info": Entry(engine.adapters.info, {"name": "a"}),
        "AdapterRegistry.update": Entry(engine.adapters.update, {"name": "a", "tensors": {}}),
        "Adapter.update": Entry(Adapter(engine.adapters, "a").update, {"tensors": {}}),
        "AdapterRegistry.__contains__": Entry(
            lambda name: name in engine.adapters, {"name": "a"}),
        "Agent.request": Entry(
            lambda prompt="hi", **given: engine.generate(ada.request(prompt, **given, **OPTIONS)),
            _arguments(Agent.request) | {"prompt": "hi"}, functions),
        "Agent.generate": prompting(ada.generate),
        "Agent.generate_async": prompting(waited(ada.generate_async)),
        "Agent.chat_request": Entry(
            lambda **given: engine.chat(ada.chat_request(**given, **OPTIONS)),
            _arguments(Agent.chat_request) | {"messages": "hi"}),
        "Agent.chat": talking(ada.chat),
        "Agent.chat_async": talking(waited(ada.chat_async)),
        "Agent.chat_stream": talking(read_out(ada.chat_stream)),
        "Agent.chat_stream_async": talking(read_async(ada.chat_stream_async)),
        "Agent.stream": prompting(read_out(ada.stream)),
        "Agent.stream_async": prompting(read_async(ada.stream_async)),
        "Agent.choose": chosen_by(ada.choose),
        "Agent.choose_async": chosen_by(waited(ada.choose_async)),
        "Agent.expect": Entry(ada.expect, {"ticks": 1.0, "at": None, "steps": None}),
        "Agent.fork": Entry(
            lambda id=None: ada.fork(f"fork {next(others)}" if id is None else id), {"id": None}),
        "distance.Plan": Entry(source_made(Plan), _arguments(Plan)),
        "distance.Plan.follow": Entry(
            lambda agent, durations: fresh(Plan, "follow")(agent=agent)
            or Plan().follow("a", durations), {"agent": "a", "durations": 3.0}),
        "distance.Graph": Entry(source_made(Graph), _arguments(Graph) | {"edges": {"a": ["b"]}}),
        "distance.Graph.connect": Entry(
            fresh(lambda: Graph({}), "connect"), {"agent": "a", "successors": ["b"]}),
        "distance.Turns": Entry(source_made(Turns), _arguments(Turns)),
        "distance.Turns.announce": Entry(
            fresh(Turns, "announce"), {"order": ["a"], "at": 3.0}),
        "distance.Activation": Entry(
            source_made(Activation),
            _arguments(Activation) | {"agents": ["a", "b"], "probability": 0.1}),
        "distance.Activation.set": Entry(
            fresh(lambda: Activation(["a", "b"], 0.1), "set"),
            {"agents": ["a"], "probability": 0.2}),
        "distance.Predrawn": Entry(
            source_made(Predrawn), _arguments(Predrawn) | {"draw": lambda tick: ["a"]},
            {"draw": CALLABLE}),
        "distance.Predrawn.active": Entry(
            fresh(lambda: Predrawn(lambda tick: ["a"]), "active"), {"tick": 0}),
        "distance.Proximity": Entry(
            source_made(Proximity),
            _arguments(Proximity) | {"agents": ["a", "b"], "positions": POSITIONS,
                                     "radius": 1.0, "max_speed": 1.0}),
        "distance.Proximity.move": Entry(
            fresh(lambda: Proximity(["a", "b"], POSITIONS, radius=1.0, max_speed=1.0), "move"),
            {"agents": ["a", "b"], "positions": POSITIONS, "speeds": None}),
        "distance.Learned": Entry(source_made(Learned), _arguments(Learned)),
    }  # fmt: skip


def _fields(record: Any) -> dict[str, Any]:
    """Defaults by field; ``None`` where there is none."""
    return {
        field.name: field.default
        if field.default is not dataclasses.MISSING
        else field.default_factory()
        if field.default_factory is not dataclasses.MISSING
        else None
        for field in dataclasses.fields(record)
    }


def _arguments(function: Any) -> dict[str, Any]:
    """Defaults by parameter, as ``_fields``."""
    return {
        name: None if parameter.default is parameter.empty else parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    }


# -- nothing is left out ------------------------------------------------------------------------

GIVEN_BY_THE_ENGINE = {
    "Reply": "what comes back",
    "ChatReply": "what comes back",
    "Call.result": "takes nothing",
    "distance.Score.restore": "for the engine",
    "Agent": "Engine.agent makes it",
    "AdapterRegistry": "Engine makes it",
    "AdapterRegistry.bind": "for the engine",
    "AdapterRegistry.rebind": "for the engine",
    "AdapterRegistry.attach": "for the engine",
    "AdapterRegistry.name_of": "for the engine",
    "Adapter": "AdapterRegistry.add makes it",
    "Adapter.is_of": "for the engine",
    "AdapterRegistry.hold": "for the engine",
    "AdapterRegistry.known": "for the engine",
    "AdapterRegistry.put_back": "for the engine",
    "AdapterRegistry.use": "for the engine",
    "AdapterRegistry.let_go": "for the engine",
    "AdapterRegistry.unbind": "for the engine",
    "AdapterRegistry.fork": "for the engine",
    "AdapterRegistry.num_pages": "for the engine",
    "Call": "Engine.submit makes it",
    "Call.begins": "for the engine",
    "MemoryView": "Engine.memory is one",
    "distance.Estimates": "what a source says: judged where it is heard",
    "distance.Score": "what comes back",
    "distance.Score.called": "for the engine",
    "distance.Score.expired": "for the engine",
    "distance.Source": "an interface",
    "distance.earliest_credible": "called by the engine, with arrays",
}
# called by the engine, with what it knows
OF_SOURCES = ("called", "changes", "forget", "restore", "state")


def public() -> dict[str, Any]:
    """Every public function, by name: of classes their makers and methods."""
    things = {name: getattr(scalesim, name) for name in scalesim.__all__}
    things |= {f"distance.{name}": getattr(scalesim.distance, name)
               for name in scalesim.distance.__all__}  # fmt: skip
    things |= {
        kind.__name__: kind
        for kind in (
            AdapterRegistry,
            Call,
            CallLimits,
            MemoryView,
            PlannerConfig,
            SchedulerConfig,
            StructureConfig,
        )
    }
    found: dict[str, Any] = {}
    for path, thing in things.items():
        if not callable(thing):
            continue
        found[path] = thing
        if not inspect.isclass(thing) or path in ("distance.Estimates", "StateKind"):
            continue  # the methods of a kind are the user's, called by the engine
        for name, member in inspect.getmembers(thing, inspect.isfunction):
            is_source = issubclass(thing, Source)
            if not name.startswith("_") and not (is_source and name in OF_SOURCES):
                found[f"{path}.{name}"] = member
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("entry")
    write_dummy_model(path, SHAPE, seed=1)
    return path


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with tiny_engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def table(folder: Path) -> Iterator[dict[str, Entry]]:
    engine = tiny_engine()  # for the names of the entries alone
    yield entries(engine, folder)
    engine.close()


def test_every_public_parameter_is_in_the_table(table: dict[str, Entry]) -> None:
    missing = []
    for path, function in public().items():
        names = _arguments(function)
        if not names or path in GIVEN_BY_THE_ENGINE:
            continue
        known = table[path].valid if path in table else {}
        missing += [f"{path}({name})" for name in names if name not in known]
    assert missing == []


def test_the_table_names_what_there_is(table: dict[str, Entry]) -> None:
    there = public() | {"parse_bytes": parse_bytes, "AdapterRegistry.__contains__": None}
    assert [path for path in (*table, *GIVEN_BY_THE_ENGINE) if path not in there] == []


# -- hostile values -----------------------------------------------------------------------------


def entry_names() -> list[str]:
    engine = tiny_engine()
    try:
        return list(entries(engine, Path("none")))
    finally:
        engine.close()


@pytest.fixture(scope="module")
def said() -> tuple[int, ...]:
    with tiny_engine() as engine:
        return engine.agent("neighbour").generate([7, 8, 9], max_tokens=6, seed=5).token_ids


@pytest.mark.filterwarnings("ignore::scalesim.errors.HintWarning")  # such a hint says nothing
@pytest.mark.filterwarnings("ignore:.* is named:DeprecationWarning")
@pytest.mark.parametrize("path", entry_names())
def test_a_hostile_value_is_taken_or_refused(
    path: str, folder: Path, said: tuple[int, ...]
) -> None:
    with tiny_engine(device_pages=60, host_pages=20) as engine:
        for entry in by_hand(engine, folder, path):
            for name in entry.valid:
                for kind, make in VALUES.items():
                    if kind not in entry.without.get(name, ()):
                        try_one(path, entry, name, kind, make())
        if path in ("Engine.submit", "Engine.cancel"):
            while engine.step():
                pass
        else:
            reply = engine.agent("neighbour").generate([7, 8, 9], max_tokens=6, seed=5)
            assert reply.token_ids == said
        assert engine.stats.restarts == 0 and not part(engine, Inbox).is_closed
        assert part(engine, RequestLimiter).num_free == part(engine, RequestLimiter).limit


def by_hand(engine: Engine, folder: Path, path: str) -> Iterator[Entry]:
    """The entry on an engine of its own mode: who submits drives it."""
    found = entries(engine, folder)
    if path not in ("Engine.submit", "Engine.cancel"):
        while not found["Engine.cancel"].valid["call"].done:
            engine.agent("ada").generate([1], max_tokens=1)
    yield found[path]


def try_one(path: str, entry: Entry, name: str, kind: str, value: object) -> None:
    try:
        entry.call(**{**entry.valid, name: value})
    except ScaleSimError as error:
        text = str(error)
        assert len(text) < LONGEST, f"{path}({name}={kind}): {text[:200]}"
        text.encode()
    except Exception as error:
        raise AssertionError(f"{path}({name}={kind}) raised {error!r}") from error


# -- what is meant is taken, what is mistyped is named -------------------------------------------


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"stop": "END"}, {"stop": ("END",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"stop": None}, {"stop": ()}),
        ({"stop_token_ids": np.array([3, 4])}, {"stop_token_ids": (3, 4)}),
        ({"stop_token_ids": 3}, {"stop_token_ids": (3,)}),
        ({"max_tokens": np.int64(5)}, {"max_tokens": 5}),
        ({"temperature": np.float32(0.5)}, {"temperature": 0.5}),
        ({"min_p": 0, "presence_penalty": 1}, {"min_p": 0.0, "presence_penalty": 1.0}),
        ({"logit_bias": {np.int32(5): 1}}, {"logit_bias": {5: 1.0}}),
        ({"seed": np.uint8(7)}, {"seed": 7}),
    ],
)
def test_what_is_meant_is_taken(
    engine: Engine, given: dict[str, Any], plain: dict[str, Any]
) -> None:
    fixed = {"max_tokens": 8, "seed": 3}
    texts = [
        engine.generate(Request([1, 2], params=SamplingParams(**{**fixed, **fields}))).token_ids
        for fields in (given, plain)
    ]
    assert texts[0] == texts[1]


def test_ids_may_be_numpys(engine: Engine) -> None:
    assert engine.agent(np.int64(4)) is engine.agent(4)  # type: ignore[arg-type]
    assert engine.agent(np.str_("eve")) is engine.agent("eve")
    assert type(engine.agent(np.int16(9)).id) is int  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda e: e.agent("a").generate("hi", max_token=5), ["max_token", "max_tokens"]),
        (lambda e: e.agent("a").generate("hi", time_out=5), ["time_out", "timeout"]),
        (lambda e: e.sampling(temprature=1.0), ["temprature", "temperature"]),
        (lambda e: e.embed(["a"], priorty=1), ["priorty", "priority"]),
        (lambda e: Engine("x", device_memry="1GB"), ["device_memry", "device_memory"]),
        (lambda e: Engine("x", policy="dedline"), ["dedline", "deadline"]),
        (lambda e: Engine("x", host_memory=4), ["4 bytes", "'4GB'"]),
        (lambda e: Engine("x", sources="Learned"), ["sources", "[Learned()]"]),
        (lambda e: Engine("x", sources=[Learned]), ["class", "Learned(...)"]),
        (lambda e: e.generate("hi"), ["'hi'", "Request(prompt)"]),
        (lambda e: e.run(["hi"]), ["'hi'", "Request(prompt)"]),
        (lambda e: e.run(ASKED), ["requests", "list"]),
        (lambda e: e.generate(Request("hi", params={"max_tokens": 5})), ["params"]),
        (lambda e: e.agent("a").chat({"role": "user"}), ["dict", "list of messages"]),
        (lambda e: e.agent("a").generate(None), ["None", "prompt"]),
        (lambda e: e.agent("a").generate("hi", timeout="1s"), ["timeout='1s'", "number"]),
        (lambda e: e.agent("x" * 10**6), ["1000000 characters", "1024"]),
        (lambda e: e.agent(10**5000), ["bits"]),
        (lambda e: e.agent("\ud800"), ["surrogate"]),
    ],
)  # fmt: skip
def test_errors_name_value_rule_and_knob(
    engine: Engine, act: Callable[[Engine], object], words: list[str]
) -> None:
    with pytest.raises(ScaleSimError) as caught:
        act(engine)
    assert [word for word in words if word not in str(caught.value)] == []


# -- what was given may change behind ------------------------------------------------------------


def test_what_a_caller_changes_behind_changes_nothing() -> None:
    """Lists, arrays and mappings are copied where they enter."""
    engine = tiny_engine()
    prompt, ids = [1, 2, 3], np.array([4, 5, 6])
    bias, stops = {65: 50.0, 66: 50.0}, ["zz"]
    params = SamplingParams(max_tokens=6, seed=1, logit_bias=bias, stop=stops)  # type: ignore[arg-type]

    def play(change: bool) -> list[tuple[int, ...]]:
        calls = [engine.submit(Request(given, params=params)) for given in (prompt, ids)]
        if change:
            prompt[:] = [0]
            ids[:] = 10**6
            bias.clear()
            bias[-5] = math.nan
            stops[:] = [None]  # type: ignore[list-item]
        while not all(call.done for call in calls):
            engine.step()
        return [call.result().token_ids for call in calls]

    assert play(False) == play(True)
    engine.close()


def test_a_call_of_another_engine_is_not_cancelled() -> None:
    one, other = tiny_engine(), tiny_engine()
    call, mine = one.submit(ASKED), other.submit(ASKED)
    with pytest.raises(errors.RequestError, match="another engine"):
        other.cancel(call)
    while not (call.done and mine.done):
        one.step()
        other.step()
    assert call.result().token_ids == mine.result().token_ids
    one.close()
    other.close()


def test_a_source_has_one_engine() -> None:
    source = Own()
    with tiny_engine(sources=[source]) as engine:
        with pytest.raises(errors.ConfigError, match="already"):
            tiny_engine(sources=[source])
        with tiny_engine() as other, pytest.raises(errors.ConfigError, match="close that engine"):
            other.add_source(source)
        assert engine.agent("a").generate("hi", max_tokens=1).token_ids
    with tiny_engine(sources=[source]) as engine:  # the first one is closed
        assert engine.agent("a").generate("hi", max_tokens=1).token_ids


def test_a_request_that_cannot_be_taken_in_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not found on the caller's thread costs its own request, and no beginning anew."""
    from scalesim.sampling.keys import SamplingKeys

    whole = SamplingKeys.key

    def key(self: Any, agent: Any, *rest: Any) -> int:
        if agent == "poison":
            raise OverflowError("int too large to convert")
        return whole(self, agent, *rest)

    monkeypatch.setattr(SamplingKeys, "key", key)
    with tiny_engine(integrity="quarantine") as engine:
        names = ["good", *["poison"] * 20, "fine"]
        requests = [engine.agent(name).request([1, 2], max_tokens=4, seed=1) for name in names]
        replies = engine.run(requests, return_exceptions=True)
        assert {type(reply) for reply in replies[1:-1]} == {errors.InternalError}
        assert isinstance(replies[0], Reply) and isinstance(replies[-1], Reply)
        assert engine.stats.restarts == 0 and engine.stats.failed == 20
        assert part(engine, RequestLimiter).num_free == part(engine, RequestLimiter).limit
