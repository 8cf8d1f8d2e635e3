"""The jinja2 sandbox that chat templates run in; they come with a model and are not trusted.

Renders what transformers renders (the same whitespace rules, filters, functions and ``generation``
tag). A template cannot reach Python beyond its values, loop for ever, or print without end. It can
still take memory through string methods (``'x'.center(10 ** 9)``): load models from people you
know.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_ROUNDS = 500_000
"""Loop rounds and macro calls of one rendering. A long real conversation takes some thousands."""

MAX_OPERAND = 1 << 20
"""Length of a repeated string or list, and bits of a product."""


class TemplateRefusal(TemplateError):
    """The template called ``raise_exception``: it does not accept these messages."""


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Serves many templates and threads. ``now`` is the clock of ``strftime_now``."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
        )
        self._rounds = threading.local()
        self.filters["_tick"] = self._tick
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda style: now().strftime(style)
        self.globals["dict"] = _new_dict
        del self.globals["lipsum"]  # random text without end

    def render(self, source: Any, variables: Mapping[str, Any], max_chars: int) -> str | None:
        """The text of the compiled template ``source``; None if it is longer than ``max_chars``.

        Whatever the template does wrong is raised as it comes, mostly as jinja2's TemplateError.
        """
        self._rounds.left = MAX_ROUNDS
        pieces, num_chars = [], 0
        for piece in source.generate(**variables):
            pieces.append(piece)
            num_chars += len(piece)
            if num_chars > max_chars:
                return None
        return "".join(pieces)

    @pass_context  # or jinja2 would call it once, when it compiles
    def _tick(self, context: Context, value: None) -> None:
        """Called by every loop round and macro body. A filter, for jinja2 calls those directly."""
        self._rounds.left -= 1
        if self._rounds.left < 0:
            raise SecurityError(f"more than {MAX_ROUNDS} loop rounds and macro calls")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _result_size(operator, left, right) > MAX_OPERAND:
            raise SecurityError(f"the result of {operator!r} is larger than {MAX_OPERAND}")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        node: Any  # jinja2 types what these three share as a node without a body
        for node in template.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            tick = nodes.Filter(nodes.Const(None), "_tick", [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
        return template


class GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's words for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(lineno)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a model to read: no HTML escapes, unlike jinja2's own filter."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """In place of the class, whose methods could change what the sandbox keeps unchanged."""
    return dict(*args, **kwargs)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusal(str(message))


def _result_size(operator: str, left: Any, right: Any) -> int:
    """Length of a repetition, bits of a product or power, rounded up; 0 for what cannot grow."""
    if operator == "**":
        whole = isinstance(left, int) and isinstance(right, int)
        return left.bit_length() * abs(right) if whole else 0
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length()
    for items, times in ((left, right), (right, left)):
        if isinstance(items, (str, list, tuple)) and isinstance(times, int):
            return len(items) * times
    return 0
