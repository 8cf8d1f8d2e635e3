"""What both kinds of completions ask of their tokens."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Real = Annotated[float, Field(allow_inf_nan=False)]


class StreamOptions(BaseModel):
    """``include_usage``: a last chunk with the counts of tokens."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None


class SamplingBody(BaseModel):
    """Fields of ``/v1/chat/completions`` and ``/v1/completions``, as OpenAI and vLLM name them."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    max_tokens: int | None = None
    temperature: Real | None = None
    top_p: Real | None = None
    top_k: int | None = None
    min_p: Real | None = None
    presence_penalty: Real | None = None
    frequency_penalty: Real | None = None
    repetition_penalty: Real | None = None
    logit_bias: dict[str, Real] | None = None
    min_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    seed: int | None = None
    stop: Any = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = None
    more_calls: int | None = None
    timeout: Real | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    json_schema: dict[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


ENGINE_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "min_tokens", "n", "seed", "stop_token_ids", "ignore_eos", "json_schema",
    "regex", "grammar",
)  # fmt: skip
"""Those that ``SamplingParams`` has under the same name, with the same meaning."""
_TOOLS = "functions are called as tools here; give tools and tool_choice"
_STRUCTURE = "give json_schema, regex or grammar, or response_format"
REFUSED = {
    "functions": _TOOLS,
    "function_call": _TOOLS,
    "guided_json": _STRUCTURE,
    "guided_regex": _STRUCTURE,
    "guided_choice": _STRUCTURE,
    "guided_grammar": _STRUCTURE,
    "structured_outputs": _STRUCTURE,
    "bad_words": "give logit_bias, or stop",
    "allowed_token_ids": "give logit_bias, or regex",
    "prompt_logprobs": "give echo and logprobs to /v1/completions",
    "truncate_prompt_tokens": "a prompt that is too long is refused; shorten it",
    "continue_final_message": "an answer begins anew; give /v1/completions the text to continue",
    "audio": "only text is written",
    "prompt_embeds": "embeddings as prompts are not read; send text or token ids",
    "chat_template": "a template in a request is not run; the server's own is used",
    "use_beam_search": "beam search is not offered; ask for n samples",
    "suffix": "text is continued, not filled in; leave suffix out",
}
"""Fields that would change what is answered, and that are not served."""
