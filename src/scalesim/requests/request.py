"""A request: a prompt, its agent, and the options of a single call."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

from scalesim.core import AgentId, Pooling
from scalesim.requests.prompt import OnOverflow, Prompt
from scalesim.sampling.params import SamplingParams

SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Request:
    """A request for a call by ``agent``, or by nobody. The prompt is text, token ids or messages.

    ``timeout`` is in seconds from submission, ``deadline`` a time of ``time.monotonic()``, which is
    also an event loop's. The earlier of the two holds; waiting for a place counts. ``sample_index``
    tells apart several draws for the same prompt. Requests with a lower ``priority`` are served
    first. ``more_calls`` of the agent follow this one in the same tick, one after another: advice
    for the order of service. ``on_overflow`` says what happens to a prompt that leaves no room for
    ``max_tokens``: an error is raised, its oldest messages or tokens are dropped, or the given
    function shortens it. With ``pooling`` nothing is generated: the reply's ``embedding`` is the
    final hidden state of the last token, or the mean over all tokens. What is computed for a
    request with a ``cache_salt`` is found by requests with the same one only, so that nobody else
    learns which prompts are in memory. ``adapter`` is the name of the adapter to call with;
    ``None``: the agent's own, ``""``: none.
    """

    prompt: Prompt
    agent: AgentId | None = None
    params: SamplingParams = field(default_factory=SamplingParams)  # how tokens are drawn
    timeout: float | None = None
    sample_index: int = 0
    deadline: float | None = None
    priority: int = 0
    more_calls: int | None = None
    on_overflow: OnOverflow = "error"
    pooling: Pooling | None = None
    cache_salt: str | None = None
    adapter: str | None = None

    @property
    def salt(self) -> bytes:
        """What tells the request's KV from others' of the same tokens; empty without a
        ``cache_salt``."""
        if self.cache_salt is None:
            return b""
        return blake2b(self.cache_salt.encode(), digest_size=SALT_BYTES).digest()
