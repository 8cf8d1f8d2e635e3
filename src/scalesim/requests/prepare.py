"""From a request to a call: what is checked, rendered and tokenized before the loop hears of it.

On the caller's thread; a request that is refused here has cost nobody anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from scalesim.checks import INT64, agent_id, reading, shown
from scalesim.core import AgentId
from scalesim.distance.hints import nearest
from scalesim.engine.agent import Agent
from scalesim.errors import PromptTooLongError, RequestError, UnknownAgentError
from scalesim.memory.manager import MemoryManager
from scalesim.requests.adapter_registry import AdapterRegistry
from scalesim.requests.call import Call, TextObserver
from scalesim.requests.choose import Option, option_ids, scoring_request
from scalesim.requests.prompt import TextModel
from scalesim.requests.request import Request, checked_call
from scalesim.requests.truncate import fit
from scalesim.sampling.check_params import check_params
from scalesim.sampling.logits import TokenConstraint
from scalesim.sampling.mask_hook import MaskHook
from scalesim.sampling.params import SamplingParams

if TYPE_CHECKING:
    from scalesim.model.text.token_stream import TokenStream


class Intake:
    """The agents of an engine, and what their requests must satisfy."""

    def __init__(self, model: TextModel, memory: MemoryManager, adapters: AdapterRegistry) -> None:
        self.agents: dict[AgentId, Agent] = {}
        # held while one is made or forgotten, and what that means for the loop is posted
        self.lock = threading.RLock()
        self._model, self._memory, self._adapters = model, memory, adapters

    def known(self, agent: AgentId) -> Agent:
        """Raises ``UnknownAgentError``, or ``RequestError`` for what can name no agent."""
        found = self.agents.get(agent_id(agent))
        if found is None:
            name, near = shown(agent), nearest(agent, list(self.agents))
            meant = "" if near is None else f" (is {near!r} meant?)"
            raise UnknownAgentError(
                f"agent {name} is unknown to this engine{meant}; make it with engine.agent({name})"
            )
        return found

    def prepare(self, request: Request) -> Call:
        """The call that ``request`` makes. Raises ``RequestError``, ``PromptTooLongError``,
        ``UnknownAgentError`` or ``AdapterError``."""
        model = self._model
        request = checked_call(request)
        if request.pooling is not None:
            params = self._embedding()
        else:
            params = check_params(request.params, model.vocab_size, model.has_logits)
        if params is not request.params:
            request = replace(request, params=params)
        owner = None if request.agent is None else self.known(request.agent)
        name = None if owner is None else owner.adapter
        tokens = model.token_ids(request.prompt)
        most = self._most_tokens(name) - params.max_tokens
        tokens, dropped = fit(request.prompt, tokens, most, request.on_overflow, model)
        model.check_length(len(tokens), params.max_tokens)
        observer = self._observer(request) if params.stop else None
        call = Call(request, model, tokens, observer)
        call.owner, call.dropped = owner, dropped
        if name is not None:
            self._check_room(name, len(tokens) + params.max_tokens)
            call.attachments = self._adapters.uses(name, tokens)
        return call

    def prepare_samples(self, request: Request) -> list[Call]:
        """One call for each of ``n`` samples; the first computes the prompt for all."""
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
            call = self.prepare(same)
            call.leader, call.dropped = leader, leader.dropped
            calls.append(call)
        return calls

    def compile(self, calls: Sequence[Call]) -> list[Call]:
        """``calls`` with what makes their guides; a structure may take long. Raises
        ``RequestError`` or ``StructureError``."""
        for call in calls:
            call.make_guide = self._guide(call.request.params, len(call.tokens))
        return list(calls)

    def _guide(
        self, params: SamplingParams, prompt_len: int
    ) -> Callable[[], TokenConstraint] | None:
        """What makes the guide of each sample, if there is one. Raises ``RequestError``, and
        ``StructureError`` for a structure that cannot be compiled."""
        if params.mask is not None:
            return partial(MaskHook, params.mask, prompt_len, self._model.vocab_size)
        if not params.is_structured:
            return None
        if self._model.structures is None:
            raise RequestError("structured output needs a tokenizer and this model has none")
        with reading("json_schema"):  # the others are text
            return self._model.structures.compile(params)

    def prepare_choice(self, request: Request, options: Sequence[Option]) -> list[Request]:
        """A request for each option, all with the tokens of ``request``'s prompt before it. Raises
        as ``prepare``."""
        model, request = self._model, checked_call(request)
        if request.pooling is not None:
            raise RequestError(f"pooling={request.pooling!r}: a choice has no embedding; leave it")
        tokens = model.token_ids(request.prompt)
        ids = [option_ids(request.prompt, tokens, option, model) for option in options]
        name = None if request.agent is None else self.known(request.agent).adapter
        most = self._most_tokens(name) - max(map(len, ids))
        tokens, _ = fit(request.prompt, tokens, most, request.on_overflow, model)
        return [scoring_request(request, tokens, each) for each in ids]

    def _embedding(self) -> SamplingParams:
        """Of a request that generates nothing."""
        if not self._model.has_logits:
            raise RequestError("embeddings need a model; this engine's runner has no hidden states")
        return SamplingParams(max_tokens=0)

    def _most_tokens(self, adapter: str | None) -> int:
        """Of prompt and output, beside the adapter."""
        if adapter is None:
            return self._model.max_len
        memory = self._memory
        num_pages = memory.num_pages - self._adapters.num_pages(adapter)
        return min(self._model.max_len, num_pages * memory.block_size)

    def _check_room(self, adapter: str, num_tokens: int) -> None:
        """The device pool must hold a request and its adapter."""
        memory, num_pages = self._memory, self._adapters.num_pages(adapter)
        needed = -(-num_tokens // memory.block_size) + num_pages
        if needed > memory.num_pages:
            raise PromptTooLongError(
                f"{num_tokens} tokens and adapter {adapter!r} of {num_pages} pages need {needed} "
                f"pages; the device pool has {memory.num_pages}; raise device_memory"
            )

    def text_stream(self, request: Request) -> TokenStream | None:
        """What turns this request's tokens into text; ``None`` without a tokenizer."""
        if self._model.tokenizer is None:
            return None
        from scalesim.model.text.token_stream import TokenStream

        return TokenStream(self._model.tokenizer, request.params.stop)

    def _observer(self, request: Request) -> TextObserver:
        stream = self.text_stream(request)
        if stream is None:
            raise RequestError("stop strings need a tokenizer and this model has none; stop on ids")
        return TextObserver(stream)
