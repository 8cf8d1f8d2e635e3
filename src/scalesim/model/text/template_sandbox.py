"""The jinja2 sandbox for chat templates, which come with a model and are not trusted.

Output equals that of transformers (the same whitespace rules, filters, functions and ``generation``
tag). A template cannot reach Python beyond its values, loop for ever, print without end or make
large values: every operation goes through a ``Meter`` (template_limits.py), and the compiler
evaluates nothing.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from scalesim.model.text.template_limits import (
    GROWTH,
    ITEM,
    MAX_BITS,
    MAX_SIZE,
    NOT_RUN,
    Meter,
    check_method,
    checked_width,
    format_size,
    percent_size,
)

MAX_TEMPLATE_CHARS = 1 << 20
_BODIES = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)
_PADDED_DATE = re.compile(r"%[-_^#+]*\d")


class TemplateRefusal(TemplateError):
    """The template called ``raise_exception``: it does not accept these messages."""


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """One environment for many templates and threads. ``now`` is the clock of ``strftime_now``."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
            optimized=False,
            finalize=self._written,
        )
        self._rendering = threading.local()
        self.filters["tojson"] = _to_json
        self.filters = {
            name: self._metered(name, run)
            for name, run in self.filters.items()
            if name not in NOT_RUN
        }
        self.filters |= {"_tick": self._tick, "_taken": self._taken, "_concat": self._concat}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda style: _date(now(), style)
        self.globals["dict"] = _new_dict
        del self.globals["lipsum"]  # random text without end

    @property
    def _meter(self) -> Meter:
        meter = getattr(self._rendering, "meter", None)
        return Meter() if meter is None else meter

    def render(self, source: Any, variables: Mapping[str, Any], max_chars: int) -> str | None:
        """The text of the compiled template ``source``; None if it is longer than ``max_chars``.

        Errors of the template are raised unchanged, mostly as jinja2's TemplateError.
        """
        self._rendering.meter = Meter()
        pieces, num_chars = [], 0
        try:
            for piece in source.generate(**variables):
                pieces.append(piece)
                num_chars += len(piece)
                if num_chars > max_chars:
                    return None
        finally:
            del self._rendering.meter
        return "".join(pieces)

    # -- metered operations: the compiler evaluates none that take a context ----------------------

    @pass_context
    def _written(self, context: Context, value: Any) -> Any:
        return self._meter.take(value)

    @pass_context
    def _tick(self, context: Context, text: int) -> None:
        """Called by every loop round, macro, block and call."""
        self._meter.tick(text)

    @pass_context
    def _taken(self, context: Context, value: Any) -> Any:
        return self._meter.take(value)

    @pass_eval_context
    def _concat(self, eval_ctx: nodes.EvalContext, parts: list[Any]) -> str:
        self._meter.afford(sum(map(self._meter.size, parts)))
        return (markup_join if eval_ctx.autoescape else str_join)(parts)

    def _metered(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """The filter ``run`` with its arguments and its result metered."""
        first = 1 if hasattr(run, "jinja_pass_arg") else 0

        @functools.wraps(run)
        def metered(*args: Any, **options: Any) -> Any:
            meter = self._meter
            given, values = args[:first], list(args[first:])
            if name in ("join", "sum") and values and not isinstance(values[0], (str, dict)):
                values[0] = list(values[0])
            for value in (*values, *options.values()):
                meter.take(value)
            if name in GROWTH:
                meter.afford(GROWTH[name](*values, **options))
            elif name == "join":
                meter.afford(_joined(meter, *values, **options))
            elif name == "format":
                meter.afford(percent_size(meter, str(values[0]), options or tuple(values[1:])))
            elif name == "sum" and any(isinstance(v, (list, tuple)) for v in values[0]):
                meter.afford(len(values[0]) * meter.size(values[0]))  # copies what it has so far
            return meter.take(run(*given, *values, **options))

        return metered

    def call(self, context: Context, call: Any, *args: Any, **options: Any) -> Any:
        meter = self._meter
        meter.tick()
        name = check_method(call)
        for value in (*args, *options.values()):
            meter.take(value)
        if name == "join":
            args = (list(args[0]), *args[1:])
            meter.afford(_joined(meter, args[0], call.__self__))
        elif name in GROWTH:
            meter.afford(GROWTH[name](call.__self__, *args, **options))
        return meter.take(super().call(context, call, *args, **options))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        run = super().wrap_str_format(value)
        if run is None:
            return None

        @functools.wraps(run)
        def metered(*args: Any, **options: Any) -> str:
            meter = self._meter
            meter.afford(format_size(meter, str(value.__self__), [*args, options]))
            return run(*args, **options)

        return metered

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = self._meter
        sizes = meter.size(left), meter.size(right)
        if operator == "%" and isinstance(left, str):
            meter.afford(percent_size(meter, left, right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > MAX_BITS:
                raise SecurityError(f"a number of more than {MAX_BITS} bits")
        elif operator == "*" and not (isinstance(left, int) and isinstance(right, int)):
            items, times = (right, left) if isinstance(left, int) else (left, right)
            size = len(items) if isinstance(items, str) else meter.size(items)
            meter.afford(size * max(times, 0) if isinstance(times, int) else 0)
        else:
            meter.afford(sum(sizes))
        return meter.take(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateError(f"{len(source)} characters; {MAX_TEMPLATE_CHARS} are the most")
        template = super()._parse(source, name, filename)
        node: Any  # jinja2's type for these lacks ``body``
        for node in template.find_all(_BODIES):
            text = nodes.Const(sum(map(_own_text, node.body)))
            tick = nodes.Filter(text, "_tick", [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
        metered: nodes.Template = _Metered().visit(template)
        return metered


class _Metered(NodeTransformer):
    """Wraps what jinja2 compiles to plain Python operations in metering filters."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        parts = nodes.List(node.nodes).set_lineno(node.lineno)
        return _filtered(parts, "_concat")

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Expr:
        return self._built(node, node.items)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        if node.ctx != "load":
            return node
        return self._built(node, node.items)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "_taken") if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Expr:
        self.generic_visit(node)
        node.expr = _taken(node.expr)
        for operand in node.ops:
            operand.expr = _taken(operand.expr)
        return node

    def _built(self, node: nodes.Expr, items: list[Any]) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "_taken") if items else node


def _taken(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filtered(node, "_taken")


def _filtered(node: Any, name: str) -> nodes.Expr:
    filtered = nodes.Filter(node, name, [], [], None, None)
    filtered.set_lineno(node.lineno)
    return filtered


def _own_text(node: nodes.Node) -> int:
    """Characters of the template's own text that one pass over ``node`` writes, without those in
    inner loops and blocks."""
    if isinstance(node, nodes.TemplateData):
        return len(node.data)
    inner: Iterator[nodes.Node] = node.iter_child_nodes()
    if isinstance(node, nodes.For):
        inner = iter(node.else_)
    elif isinstance(node, _BODIES):
        return 0
    return sum(map(_own_text, inner))


def _joined(meter: Meter, value: Any, d: Any = "", attribute: Any = None) -> int:
    return meter.size(value) + len(value) * meter.size(d)


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
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a model to read: no HTML escapes, unlike jinja2's own filter."""
    for part in (indent, *(separators or ())):
        if part is not None and checked_width(part) > ITEM:
            raise SecurityError(f"tojson with an indent or a separator of {checked_width(part)}")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None:
        return encoder.encode(value)
    pieces, size = [], 0
    for piece in encoder.iterencode(value):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_SIZE:
            raise SecurityError(f"JSON of more than {MAX_SIZE} characters")
    return "".join(pieces)


def _date(moment: datetime, style: object) -> str:
    """``strftime``; the C library's padding (``%0999d``) is refused."""
    if not isinstance(style, str) or len(style) > 1000 or _PADDED_DATE.search(style):
        raise SecurityError(f"strftime_now({style!r:.60}): a plain format of 1000 characters")
    return moment.strftime(style)


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """A replacement for the class ``dict``, whose methods could change values that the sandbox
    keeps immutable."""
    return dict(*args, **kwargs)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusal(str(message))
