"""A request: what a user asks of the engine in one call."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

from scalesim.core import AgentId, Pooling
from scalesim.requests.prompt import OnOverflow, Prompt
from scalesim.sampling.params import SamplingParams

SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Request:
    """One call: text, token ids or chat messages, by an agent or by nobody.

    ``timeout`` is in seconds from submission, ``deadline`` in seconds of ``time.monotonic()``
    (which is an event loop's ``time()``). The earlier one counts, and so does the time in a full
    queue. ``sample_index`` tells apart several draws of one prompt. ``priority``: lower is served
    first; equal ones in order of arrival. ``on_overflow`` says what happens to a prompt that leaves
    no room for ``max_tokens``: an error, the oldest messages or tokens are dropped, or the function
    shortens it. With ``pooling`` nothing is generated: the reply's ``embedding`` is the final
    hidden state of the last token, or the mean over all tokens. What is computed for a request with
    a ``cache_salt`` is found by requests with the same one only: whose prompts are in memory is
    nobody else's to learn. ``adapter`` is the name of the adapter to call with; ``None``: the
    agent's own, ``""``: none.
    """

    prompt: Prompt
    agent: AgentId | None = None
    params: SamplingParams = field(default_factory=SamplingParams)  # how tokens are drawn
    timeout: float | None = None
    sample_index: int = 0
    deadline: float | None = None
    priority: int = 0
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
