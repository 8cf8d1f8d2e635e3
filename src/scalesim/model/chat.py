"""Messages to prompt: a model's chat template, byte for byte as transformers applies it.

The engine renders, then encodes without adding special tokens, for the template writes its own.
What a message may be is checked in ``messages.py``; what a template may do, in
``template_sandbox.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from scalesim.errors import RequestError, UnsupportedModelError
from scalesim.model.messages import checked_messages, checked_tools, plain
from scalesim.model.template_sandbox import TemplateRefusal, TemplateSandbox
from scalesim.model.tokenizer import read_tokenizer_config

MAX_CHARS = 1 << 20

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template of models that bring none, such as random ones."""


class ChatTemplate:
    """One model's chat template, or several by name.

    ``special_tokens`` are variables of the template. ``max_chars`` bounds a prompt. ``now`` is what
    ``strftime_now`` reads: a template that prints the date gives other prompts tomorrow.
    Raises UnsupportedModelError if a template is not valid jinja2.
    """

    def __init__(
        self,
        sources: str | Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        *,
        max_chars: int = MAX_CHARS,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        named = {"default": sources} if isinstance(sources, str) else sources
        self._sandbox = TemplateSandbox(now)
        self._templates = {name: self._compile(name, source) for name, source in named.items()}
        self._special_tokens = dict(special_tokens or {})
        self._max_chars = max_chars

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt for ``messages``: dicts with a role and a content (a string or text parts).

        ``tools`` are JSON schemas. ``variables`` are passed on (``enable_thinking=False``).
        May be called from any thread. Raises RequestError if a message, a tool or a variable is not
        valid, if the template refuses them or fails, and if the prompt is too long.
        """
        values = {
            "documents": None,
            **self._special_tokens,
            **plain(variables, "variables"),
            "messages": checked_messages(messages),
            "tools": checked_tools(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._render(self._choose(tools is not None), values)
        if text is None:
            raise RequestError(
                f"the chat template wrote more than {self._max_chars} characters; "
                "send fewer or shorter messages, or raise max_chars"
            )
        return text

    def _compile(self, name: str, source: str) -> Any:
        try:
            return self._sandbox.from_string(source)
        except TemplateSyntaxError as error:
            raise UnsupportedModelError(
                f"chat template {name!r} is not valid at line {error.lineno}: {error.message}"
            ) from error

    def _choose(self, with_tools: bool) -> Any:
        name = "tool_use" if with_tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise RequestError(
                f"the model has the chat templates {sorted(self._templates)} and none called "
                "'default'; save one of them as chat_template.jinja"
            )
        return self._templates[name]

    def _render(self, template: Any, values: Mapping[str, Any]) -> str | None:
        try:
            return self._sandbox.render(template, values, self._max_chars)
        except TemplateRefusal as error:
            raise RequestError(f"the chat template refuses these messages: {error}") from error
        except Exception as error:  # a template can fail in every way that an expression can
            kind = type(error).__name__
            raise RequestError(
                f"the chat template failed on these messages: {kind}: {error}"
            ) from error


def load_chat_template(folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template of a Hugging Face model folder, or None if the model has none.

    Templates in files of their own (chat_template.jinja, additional_chat_templates/NAME.jinja) go
    before those in tokenizer_config.json. Raises UnsupportedModelError if they are not valid.
    """
    sources = _template_files(folder) or _configured(read_tokenizer_config(folder))
    return ChatTemplate(sources, special_tokens) if sources else None


def _template_files(folder: Path) -> dict[str, str]:
    files = {path.stem: path for path in folder.glob("additional_chat_templates/*.jinja")}
    files["default"] = folder / "chat_template.jinja"
    return {
        name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()
    }


def _configured(config: Mapping[str, Any]) -> dict[str, str]:
    match config.get("chat_template"):
        case None:
            return {}
        case str(source):
            return {"default": source}
        case [*entries] if all(_is_named(entry) for entry in entries):
            return {entry["name"]: entry["template"] for entry in entries}
        case other:
            raise UnsupportedModelError(
                f"tokenizer_config.json: chat_template is a {type(other).__name__}; it must be a "
                "string, or a list of objects with 'name' and 'template'"
            )


def _is_named(entry: object) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), str) for key in ("name", "template")
    )
