"""The intake: makes calls of requests on the caller's thread: checked, rendered, tokenized.

Everything that a user can get wrong is refused here, before the request reaches anything shared: a
refused request has cost no other request anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from scalesim.checks import INT64
from scalesim.core import AgentId
from scalesim.errors import RequestError
from scalesim.requests.adapter_registry import AdapterRegistry
from scalesim.requests.agent_registry import AgentRegistry
from scalesim.requests.call import Call, TextObserver
from scalesim.requests.check_request import checked_request
from scalesim.requests.model_registry import ModelRegistry
from scalesim.requests.prompt import TextModel
from scalesim.requests.request import Request
from scalesim.requests.truncate import fit_prompt
from scalesim.sampling.check_params import check_params
from scalesim.sampling.keys import SamplingKeys
from scalesim.sampling.params import SamplingParams


class Intake:
    """Makes calls of requests to an engine, or refuses the requests."""

    def __init__(
        self,
        models: ModelRegistry,
        agents: AgentRegistry,
        adapters: AdapterRegistry,
        keys: SamplingKeys,
    ) -> None:
        self.models, self.agents, self.adapters = models, agents, adapters
        self._keys = keys

    def prepare(self, request: Request, leader: Call | None = None) -> Call:
        """Make the call of ``request``, on what ``leader`` runs on, if that is another sample of
        the prompt. Raises ``RequestError``, ``PromptTooLongError``, ``UnknownAgentError``,
        ``ModelError`` or ``AdapterError``."""
        request = checked_request(request)
        owner = None if request.agent is None else self.agents.known(request.agent)
        added = self.models.version_of(owner) if leader is None else leader.added
        model = self.models.text_of(added)
        if request.pooling is None:
            params = check_params(request.params, model.vocab_size, model.has_logits)
        elif model.has_logits:
            params = SamplingParams(max_tokens=0)  # an embedding generates nothing
        else:
            raise RequestError("embeddings need a model; this engine's runner has no hidden states")
        if params is not request.params:
            request = replace(request, params=params)
        adapter = None if owner is None else owner.adapter
        if request.adapter is not None:
            adapter = request.adapter or None
        tokens = model.token_ids(request.prompt)
        num_beside = 0 if adapter is None else self.adapters.num_pages(adapter)
        max_tokens = self.models.max_len(added, num_beside) - params.max_tokens
        tokens, dropped = fit_prompt(request.prompt, tokens, max_tokens, request.on_overflow, model)
        model.check_length(len(tokens), params.max_tokens)
        stops = TextObserver(model.stop_stream(params.stop)) if params.stop else None
        call = Call(request, model, tokens, stops, owner, dropped)
        call.adapter, call.added, call.leader = adapter, added, leader
        if added is not None:
            call.attachments = (added.spec,)
        self.adapters.attach(call)
        # another try where what it was to run on has left meanwhile
        return call if self.models.use(call) else self.prepare(request, leader)

    def prepare_one(self, request: Request) -> Call:
        """``prepare`` for a request of a single sample. Raises ``RequestError`` for ``n`` above 1
        as well."""
        call = self.prepare(request)
        if (n := call.request.params.n) != 1:
            raise RequestError(
                f"n={n}: one sample at a time is submitted or streamed; send "
                "requests with sample_index 0 to n - 1, or use a call that waits"
            )
        return call

    def prepare_samples(self, request: Request) -> list[Call]:
        """Make a call for each of the ``n`` samples. The first call computes the prompt for all."""
        leader = self.prepare(request)
        calls, request = [leader], leader.request
        last = request.sample_index + request.params.n - 1
        if last >= INT64:
            raise RequestError(
                f"sample_index={request.sample_index} and n={request.params.n} count samples to "
                f"{last}; it must be below 2**63"
            )
        for index in range(1, request.params.n):
            same = replace(request, prompt=leader.tokens, sample_index=request.sample_index + index)
            call = self.prepare(same, leader)
            call.dropped = leader.dropped
            calls.append(call)
        return calls

    def compile(self, calls: Sequence[Call]) -> list[Call]:
        """Give ``calls`` the makers of their constraints; compiling a structure may take long.
        Raises ``RequestError`` or ``StructureError``."""
        for call in calls:
            model, params = call.model, call.request.params
            call.make_constraint = model.constraint_maker(params, len(call.tokens))
        return list(calls)

    def number(self, calls: Iterable[Call]) -> None:
        """Number equal requests in the order in which they are handed in, whether or not they end
        well, so that each draws other tokens. A call that has a number keeps the number."""
        for call in calls:
            if call.number is not None:
                continue
            request, params, leader = call.request, call.request.params, call.leader
            if leader is not None:
                call.digest, call.number = leader.digest, leader.number
                continue
            call.digest, call.number = self._keys.prompt_digest(call.tokens, params), 0
            draws = params.temperature > 0.0 and params.max_tokens > 0
            if draws and params.seed is None:
                # of equal requests with other salts, none may show in which tokens are drawn
                counted = call.digest ^ int.from_bytes(request.salt[:8], "little")
                call.number = self._keys.number(
                    request.agent, counted, request.sample_index, call.owner
                )

    def model_of(self, agent: AgentId | None) -> TextModel:
        """The model that requests of ``agent`` run on: its own choice, or the engine's own."""
        owner = None if agent is None else self.agents.known(agent)
        return self.models.text_of(self.models.version_of(owner))
