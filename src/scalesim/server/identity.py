"""Who calls: the agent that a request is taken for, by the first rung of a ladder that names one.

    body agent_id, session_id
    headers X-ScaleSim-Agent, X-Session-ID, x-dynamo-session-id, x-smg-routing-key
    body prompt_cache_key, user
    the model's name, as in base@agent
    the base URL, as in /agents/{id}/v1
    a fingerprint of the system message

An identity steers memory and changes no text. It is never a cache key: what is computed is found by
its tokens, and each API key has agents of its own. Used on the event loop's thread alone.
"""

from __future__ import annotations

import string
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from secrets import token_bytes
from types import TracebackType
from typing import Any
from urllib.parse import quote

from scalesim.checks import refuse

MAX_ID_CHARS = 256
MAX_AGENTS = 100_000
MAX_FINGERPRINTS = 65_536
MAX_MESSAGES = 4096
"""Of a longer conversation no fingerprint is taken: that would hold up all other requests."""
ANONYMOUS = "none"
"""The rung of a call that no rung names."""
TEMPLATE = "template"
"""The rung of a call whose system message is many agents'."""
_HEADERS = ("X-ScaleSim-Agent", "X-Session-ID", "x-dynamo-session-id", "x-smg-routing-key")
_BETWEEN = "\x1f"  # stands between a key's scope and a name; no name has it, as it is not printable
_PLAIN = string.punctuation.replace("%", "") + " "
_SYSTEM = ("system", "developer")


def agent_name(what: str, value: object) -> str:
    """The name of an agent as HTTP has it: printable text of 1 to ``MAX_ID_CHARS`` characters. A
    whole number is its digits. Raises ``RequestError``."""
    name = str(value) if type(value) is int and value.bit_length() <= 64 else value
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_ID_CHARS or not name.isprintable():
        refuse(what, value, f"must be printable text of 1 to {MAX_ID_CHARS} characters")
    return name


def scoped(name: str, scope: str) -> str:
    """The engine's id of agent ``name`` of an API key: names of two keys are two agents."""
    return f"{scope}{_BETWEEN}{name}" if scope else name


def unscoped(id: object, scope: str) -> str | None:
    """The name of agent ``id`` for the key of ``scope``; ``None`` if it is another key's."""
    name = str(id)
    if scope:
        return name.removeprefix(scope + _BETWEEN) if name.startswith(scope + _BETWEEN) else None
    return None if _BETWEEN in name else name


@dataclass(slots=True, eq=False)
class _Fingerprint:
    """A system message, and the prompts that begin with it of the calls that are open."""

    open_prompts: Counter[bytes] = field(default_factory=Counter)
    is_template: bool = False


class Caller:
    """Whom a call is taken for: ``agent`` is the engine's id, ``name`` what its key calls it,
    ``rung`` what named it. Both are ``None`` where nobody is named. ``hint`` says whether a hint
    that came with the call was used, ``outcomes`` what became of an envelope. As a context manager,
    it spans the call."""

    __slots__ = (
        "_fingerprint", "_identity", "_prompt",
        "agent", "hint", "name", "outcomes", "rung", "scope",
    )  # fmt: skip

    def __init__(
        self,
        identity: Identity,
        name: str | None,
        rung: str,
        scope: str = "",
        fingerprint: _Fingerprint | None = None,
        prompt: bytes = b"",
    ) -> None:
        self._identity, self._fingerprint, self._prompt = identity, fingerprint, prompt
        self.name, self.rung, self.scope = name, rung, scope
        self.hint, self.outcomes = "none", ""
        self.agent = None if name is None else scoped(name, scope)

    def __enter__(self) -> Caller:
        if self._fingerprint is not None:
            self._fingerprint.open_prompts[self._prompt] += 1
        if self.agent is not None:
            self._identity.begins(self.agent)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._fingerprint is not None:
            self._fingerprint.open_prompts[self._prompt] -= 1
            self._fingerprint.open_prompts += Counter()  # without those that are at 0
        if self.agent is not None:
            self._identity.ends(self.agent)

    @property
    def headers(self) -> dict[str, str]:
        """What a reply says of it. What of a name is no ASCII is written as in a URL."""
        told = {"X-ScaleSim-Identity": self.rung, "X-ScaleSim-Hint": self.hint}
        if self.outcomes:
            told["X-ScaleSim-KV-Hints"] = self.outcomes
        if self.name is not None:
            told["X-ScaleSim-Agent"] = quote(self.name, safe=_PLAIN)
        return told


class Identity:
    """The ladder, and the agents that were made by it.

    Bounded: of more than ``max_agents``, those that called longest ago are given to ``forget``,
    unless they are calling; of system messages, ``max_fingerprints`` are remembered.
    """

    def __init__(
        self,
        forget: Callable[[list[str]], object] = lambda agents: None,
        *,
        max_agents: int = MAX_AGENTS,
        max_fingerprints: int = MAX_FINGERPRINTS,
    ) -> None:
        self._forget, self._max_agents = forget, max_agents
        self._max_fingerprints = max_fingerprints
        self._agents: OrderedDict[str, int] = OrderedDict()  # their open calls; the newest last
        self._fingerprints: OrderedDict[bytes, _Fingerprint] = OrderedDict()
        self._secret = token_bytes(32)  # nobody outside can make two messages collide

    def __len__(self) -> int:
        return len(self._agents)

    def __contains__(self, agent: object) -> bool:
        return agent in self._agents

    def who_calls(
        self,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
        path_agent: str | None = None,
        model_alias: str | None = None,
        scope: str = "",
    ) -> Caller:
        """The caller of a request. ``scope`` tells API keys apart. ``headers`` are looked up in
        lower case.

        What is ours to name (``agent_id``, our header, a model's alias, the URL) must be a usable
        name: raises ``RequestError``. What others made for purposes of their own is passed over
        where it is none.
        """
        for value, rung, is_ours in (
            (body.get("agent_id"), "agent_id", True),
            (body.get("session_id"), "session_id", False),
            *((_header(headers, name), name, name == _HEADERS[0]) for name in _HEADERS),
            (body.get("prompt_cache_key"), "prompt_cache_key", False),
            (body.get("user"), "user", False),
            (model_alias, "model", True),
            (path_agent, "path", True),
        ):
            if value is None:
                continue
            if is_ours:
                return Caller(self, agent_name(rung, value), rung, scope)
            if isinstance(value, str) and 1 <= len(value) <= MAX_ID_CHARS and value.isprintable():
                return Caller(self, value, rung, scope)
        return self._by_fingerprint(body.get("messages"), scope)

    def _by_fingerprint(self, messages: object, scope: str) -> Caller:
        """By the system message, until two calls with different prompts that begin with it are open
        at once: it is a template of many agents then, and its calls are nobody's from then on."""
        system, prompt = self._digests(messages, scope)
        if system is None:
            return Caller(self, None, ANONYMOUS, scope)
        found = self._fingerprints.setdefault(system, _Fingerprint())
        self._fingerprints.move_to_end(system)
        while len(self._fingerprints) > self._max_fingerprints:
            self._fingerprints.popitem(last=False)
        others = found.open_prompts.keys() - {prompt}
        if found.is_template or others:
            found.is_template = True
            return Caller(self, None, TEMPLATE, scope)
        return Caller(self, f"fp-{system.hex()}", "fingerprint", scope, found, prompt)

    def _digests(self, messages: object, scope: str) -> tuple[bytes | None, bytes]:
        """Of the system messages that come first, and of all messages."""
        if not isinstance(messages, list) or len(messages) > MAX_MESSAGES:
            return None, b""
        digest = blake2b(scope.encode(), digest_size=16, key=self._secret)
        system: bytes | None = None
        is_first, has_system = True, False
        for message in messages:
            if not isinstance(message, Mapping):
                return None, b""
            if is_first and message.get("role") not in _SYSTEM:
                is_first, system = False, digest.digest() if has_system else None
            has_system = has_system or is_first
            written = repr((message.get("role"), message.get("content"))).encode(errors="replace")
            digest.update(len(written).to_bytes(8, "little") + written)
        return (digest.digest() if is_first and has_system else system), digest.digest()

    # -- the agents that there are ------------------------------------------------------------

    def begins(self, agent: str) -> None:
        """A call of ``agent`` is open from now on."""
        self._agents[agent] = self._agents.get(agent, 0) + 1
        self._agents.move_to_end(agent)
        if len(self._agents) > self._max_agents:
            self._drop_oldest()

    def ends(self, agent: str) -> None:
        """A call of ``agent`` is not open any more."""
        if (count := self._agents.get(agent)) is not None:  # it may have been forgotten since
            self._agents[agent] = max(count - 1, 0)

    def let_in(self, agents: list[str]) -> tuple[list[str], list[str]]:
        """Those of ``agents``, who are spoken of, that are known or find room, and the others. Who
        is only spoken of makes nobody leave."""
        new = [agent for agent in agents if agent not in self._agents]
        if not new:
            return agents, []
        room = self._max_agents - len(self._agents)
        for agent in new[:room]:
            self._agents[agent] = 0
        refused = set(new[room:])
        return [agent for agent in agents if agent not in refused], new[room:]

    def drop(self, agents: Iterable[str]) -> None:
        """``agents`` were forgotten by their user."""
        for agent in agents:
            self._agents.pop(agent, None)

    def _drop_oldest(self) -> None:
        """A hundredth at a time, so that the engine hears of it seldom."""
        wanted = len(self._agents) - self._max_agents + self._max_agents // 100
        gone: list[str] = []
        for agent, num_open in self._agents.items():
            if len(gone) == wanted:
                break
            if not num_open:
                gone.append(agent)
        self.drop(gone)
        if gone:
            self._forget(gone)


def _header(headers: Mapping[str, str], name: str) -> str | None:
    """ASGI servers hand on the bytes of a header as Latin-1; clients write UTF-8."""
    value = headers.get(name.lower())
    if value is None or value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
