"""Chat templates: from messages to a prompt, byte for byte as transformers renders it.

The engine renders a prompt, then encodes it without adding special tokens, because the template
writes its own. ``messages.py`` validates messages; ``template_sandbox.py`` limits what a template
can do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError, nodes

from scalesim.errors import ConfigError, RequestError, UnsupportedModelError
from scalesim.model.checkpoint.files import read_text
from scalesim.model.text.messages import check_roles, checked_messages, checked_tools, plain
from scalesim.model.text.special_tokens import read_tokenizer_config
from scalesim.model.text.template_sandbox import TemplateRefusal, TemplateSandbox

MAX_CHARS = 1 << 20
MAX_TEMPLATE_BYTES = 4 << 20
_log = logging.getLogger(__name__)

CHATML = """
{%- if tools -%}
    {{ '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' -%}
        {{ messages[0]['content'] + '\n\n' }}
    {%- endif -%}
    {{ 'You can call these functions:\n' }}
    {%- for tool in tools -%}
        {{ tool | tojson + '\n' }}
    {%- endfor -%}
    {{ 'Write each call as a JSON object between two tags:\n' }}
    {{- '<tool_call>\n{"name": the name, "arguments": {...}}\n</tool_call><|im_end|>\n' }}
{%- endif -%}
{%- for message in messages -%}
    {%- if not (tools and loop.first and message['role'] == 'system') -%}
        {{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}
        {%- for call in message['tool_calls'] or [] -%}
            {{ '\n' if message['content'] or not loop.first else '' }}
            {{- '<tool_call>\n{"name": ' + call['function']['name'] | tojson }}
            {{- ', "arguments": ' + call['function']['arguments'] | tojson + '}\n</tool_call>' }}
        {%- endfor -%}
        {{ '<|im_end|>\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
"""The template for models without one, such as random models; of tools it speaks as Hermes does."""


class ChatTemplate:
    """One model's chat template, or several by name.

    ``special_tokens`` are variables of the template. ``max_chars`` bounds a prompt. ``now`` is the
    clock of ``strftime_now``: a template that prints the date gives other prompts tomorrow.
    ``assumed`` means that the template is not the model's own; its first use says so.
    Raises UnsupportedModelError if a template is not valid jinja2.
    """

    def __init__(
        self,
        sources: str | Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        *,
        max_chars: int = MAX_CHARS,
        now: Callable[[], datetime] = datetime.now,
        assumed: bool = False,
    ) -> None:
        named = {"default": sources} if isinstance(sources, str) else sources
        self._sandbox = TemplateSandbox(now)
        self._sources = dict(named)
        self._templates = {name: self._compile(name, source) for name, source in named.items()}
        self._words = {name: self._strings(source) for name, source in named.items()}
        self._variables = {name: self._names(source) for name, source in named.items()}
        self._assumed = assumed
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
        valid, if the template refuses them or fails, if a role is neither a usual one nor one that
        the template names, and if the prompt is too long.
        """
        name = self._choose(tools is not None)
        checked = checked_messages(messages)
        check_roles(checked, self._words[name])
        if self._assumed:
            self._assumed = False
            _log.warning(
                "this model has no chat template: ChatML is used, which it may never have seen. "
                "Give its own with chat_template= (jinja2 source, or a file's path), or say "
                "chat_template='chatml'"
            )
        values = {
            "documents": None,
            **self._special_tokens,
            **plain(variables, "variables"),
            "messages": checked,
            "tools": checked_tools(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._render(self._templates[name], values)
        if text is None:
            raise RequestError(
                f"the chat template wrote more than {self._max_chars} characters; "
                "send fewer or shorter messages, or raise max_chars"
            )
        return text

    def mentions(self, text: str, *, with_tools: bool = False) -> bool:
        """Whether ``text`` stands in the source of the template that ``render`` uses."""
        return text in self._sources[self._choose(with_tools)]

    def reads(self, variable: str, *, with_tools: bool = False) -> bool:
        """Whether that template looks at ``variable``."""
        return variable in self._variables[self._choose(with_tools)]

    def _compile(self, name: str, source: str) -> Any:
        try:
            return self._sandbox.from_string(source)
        except TemplateSyntaxError as error:
            raise UnsupportedModelError(
                f"chat template {name!r} is not valid at line {error.lineno}: {error.message}"
            ) from error
        except Exception as error:  # nested too deeply, too long, a number of 5000 digits
            raise UnsupportedModelError(
                f"chat template {name!r} cannot be compiled: {type(error).__name__}: {error!s:.200}"
            ) from error

    def _strings(self, source: str) -> frozenset[str]:
        """The string constants in the template's source: texts that it writes or compares with."""
        constants = self._sandbox.parse(source).find_all(nodes.Const)
        return frozenset(
            constant.value for constant in constants if isinstance(constant.value, str)
        )

    def _names(self, source: str) -> frozenset[str]:
        """The names of variables in the template's source."""
        return frozenset(node.name for node in self._sandbox.parse(source).find_all(nodes.Name))

    def _choose(self, with_tools: bool) -> str:
        name = "tool_use" if with_tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise RequestError(
                f"the model has the chat templates {sorted(self._templates)} and none called "
                "'default'; save one of them as chat_template.jinja"
            )
        return name

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


def chosen_chat_template(
    chosen: str | None, folder: Path, special_tokens: Mapping[str, str]
) -> ChatTemplate:
    """The template that a setting names: ``"chatml"``, jinja2 source, or the path of a file of it;
    the folder's, if it is None; ChatML where that has none. Raises UnsupportedModelError."""
    if chosen is None:
        own = load_chat_template(folder, special_tokens)
        return own or ChatTemplate(CHATML, special_tokens, assumed=True)
    if chosen == "chatml":
        return ChatTemplate(CHATML, special_tokens)
    if "{" in chosen:
        return ChatTemplate(chosen, special_tokens)
    path = Path(chosen).expanduser()
    return ChatTemplate(read_text(path, MAX_TEMPLATE_BYTES, ConfigError), special_tokens)


def _template_files(folder: Path) -> dict[str, str]:
    files = {path.stem: path for path in folder.glob("additional_chat_templates/*.jinja")}
    files["default"] = folder / "chat_template.jinja"
    return {
        name: read_text(path, MAX_TEMPLATE_BYTES, UnsupportedModelError)
        for name, path in files.items()
        if os.path.lexists(path)
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
