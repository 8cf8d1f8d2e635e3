"""Templates in the manner of models that think, tools of a town, and a model that says what a test
wants to hear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scalesim.core import Int32s
from scalesim.engine.engine import Engine
from tests.engine.world import TOKENIZER, tiny_engine
from tests.text.templates_written_here import LLAMA3_MANNER, QWEN_MANNER

OPENING_MANNER = """\
{%- for message in messages -%}
    {%- set content = message.content -%}
    {%- if message.role == 'assistant' and '</think>' in content -%}
        {%- set content = content.split('</think>')[-1] -%}
    {%- endif -%}
    {{- '<' + message.role + '>' + content -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<assistant><think>\\n' }}{%- endif -%}
"""
"""Of a model whose prompt opens the thinking, as those after DeepSeek's R1 do; it knows no tools."""
MANNERS = {"qwen": QWEN_MANNER, "llama": LLAMA3_MANNER, "opening": OPENING_MANNER}

GO: dict[str, Any] = {
    "name": "go",
    "description": "Go to a place.",
    "parameters": {
        "type": "object",
        "properties": {
            "place": {"enum": ["park", "mill"]},
            "pace": {"$ref": "#/$defs/Pace"},
        },
        "required": ["place", "pace"],
        "$defs": {"Pace": {"type": "integer", "minimum": 1, "maximum": 5}},
    },
}
WAIT: dict[str, Any] = {"name": "wait", "description": "Do nothing."}
TOOLS = [{"type": "function", "function": GO}, {"type": "function", "function": WAIT}]


def engine_of(manner: str, **settings: Any) -> Engine:
    return tiny_engine(chat_template=MANNERS[manner], **settings)


def saying(text: str) -> Callable[[Int32s, Int32s], Sequence[int]]:
    """A mask under which any model says ``text``, and ends."""
    [end] = TOKENIZER.encode("<|eos|>", add_special_tokens=False)
    ids = [*text.encode(), end]
    return lambda prompt, output: [ids[len(output)]]
