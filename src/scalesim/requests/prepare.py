"""From a request to a call: what is checked, rendered and tokenized before the loop hears of it.

On the caller's thread; a request that is refused here has cost nobody anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from scalesim.checks import INT64, reading
from scalesim.errors import PromptTooLongError, RequestError
from scalesim.memory.manager import MemoryManager
from scalesim.requests.adapter_registry import AdapterRegistry
from scalesim.requests.agent_registry import AgentRegistry
from scalesim.requests.call import Call, TextObserver
from scalesim.requests.choose import Option, option_ids, scoring_request
from scalesim.requests.prompt import TextModel
from scalesim.requests.request import Request, checked_call
from scalesim.requests.truncate import fit
from scalesim.sampling.check_params import check_params
from scalesim.sampling.keys import SamplingKeys
from scalesim.sampling.logits import TokenConstraint
from scalesim.sampling.mask_hook import MaskHook
from scalesim.sampling.params import SamplingParams

if TYPE_CHECKING:
    from scalesim.model.text.token_stream import TokenStream


class Intake:
    """What the requests of an engine's agents must satisfy."""

    def __init__(
        self,
        model: TextModel,
        memory: MemoryManager,
        agents: AgentRegistry,
        adapters: AdapterRegistry,
        keys: SamplingKeys,
    ) -> None:
        self.agents = agents
        self._model, self._memory, self._adapters, self._keys = model, memory, adapters, keys

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
        owner = None if request.agent is None else self.agents.known(request.agent)
        name = None if owner is None else owner.adapter
        tokens = model.token_ids(request.prompt)
        max_tokens = self._most_tokens(name) - params.max_tokens
        tokens, dropped = fit(request.prompt, tokens, max_tokens, request.on_overflow, model)
        model.check_length(len(tokens), params.max_tokens)
        call = Call(request, model, tokens, self._stops(request) if params.stop else None)
        call.owner, call.dropped = owner, dropped
        if name is not None:
            self._check_room(name, len(tokens) + params.max_tokens)
            call.attachments = self._adapters.uses(name, tokens)
        return call

    def prepare_one(self, request: Request) -> Call:
        """``prepare``, for calls of one sample. Raises ``RequestError`` for more as well."""
        call = self.prepare(request)
        if (n := call.request.params.n) != 1:
            raise RequestError(
                f"n={n}: one sample at a time is submitted or streamed; send "
                "requests with sample_index 0 to n - 1, or use a call that waits"
            )
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

    def number(self, calls: Iterable[Call]) -> None:
        """Tell equal requests apart, each once: in the order in which they are handed in, whatever
        becomes of them then. What is refused before that does not count."""
        for call in calls:
            if call.number is not None:
                continue
            request, params, first = call.request, call.request.params, call.leader
            if first is not None:
                call.digest, call.number = first.digest, first.number
                continue
            call.digest, call.number = self._keys.prompt_digest(call.tokens, params), 0
            draws = params.temperature > 0.0 and params.max_tokens > 0
            if draws and params.seed is None:
                call.number = self._keys.number(
                    request.agent, call.digest, request.sample_index, call.owner
                )

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
        answers = [option_ids(request.prompt, tokens, option, model) for option in options]
        name = None if request.agent is None else self.agents.known(request.agent).adapter
        max_tokens = self._most_tokens(name) - max(map(len, answers))
        tokens, _ = fit(request.prompt, tokens, max_tokens, request.on_overflow, model)
        return [scoring_request(request, tokens, answer) for answer in answers]

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

    def _stops(self, request: Request) -> TextObserver:
        stream = self.text_stream(request)
        if stream is None:
            raise RequestError("stop strings need a tokenizer and this model has none; stop on ids")
        return TextObserver(stream)
