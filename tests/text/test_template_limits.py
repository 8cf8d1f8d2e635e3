"""No template makes large values, prints without end or runs for long; usual ones are not hindered.

Each bomb is named by the operation that it would grow a value with. A value is allowed 32 MiB, so a
bomb that got through would show in the process's peak memory.
"""

from __future__ import annotations

import resource
from typing import Any

import pytest

from scalesim.errors import RequestError, UnsupportedModelError
from scalesim.model.text.chat import ChatTemplate
from scalesim.model.text.template_limits import MAX_SIZE

HELLO = [{"role": "user", "content": "hello " * 50}]
LONG = "{% set s = 'x' * 1000000 %}"
DOUBLED = (
    "{% set ns = namespace(v=VALUE) %}{% for i in range(99) %}{% set ns.v = STEP %}{% endfor %}"
)


def doubled(value: str, step: str, last: str = "{{ ns.v|length }}") -> str:
    return DOUBLED.replace("VALUE", value).replace("STEP", step) + last


BOMBS = {
    "repeat": "{{ 'x' * 10 ** 10 }}",
    "repeat, turned": "{{ (10 ** 9) * 'x' }}",
    "repeat a list": "{{ ([messages] * 10 ** 9)|length }}",
    "repeat a tuple": "{{ ((1, 2) * 10 ** 9)|length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "product": "{% set ns = namespace(v=3) %}{% for i in range(99) %}{% set ns.v = ns.v * ns.v %}"
    "{% endfor %}",
    "number from hex": LONG.replace("x", "f") + "{{ s|int(base=16) }}",
    "percent": "{{ '%0999999999d' % 5 }}",
    "percent, precision": "{{ '%.999999999f' % 5 }}",
    "percent, star": "{{ '%*d' % (999999999, 5) }}",
    "percent, by name": LONG + "{{ ('%(a)s' * 1000) % {'a': s} }}",
    "format filter": "{{ '%0999999999d'|format(5) }}",
    "str.format": "{{ '{:>999999999}'.format(5) }}",
    "str.format, nested": "{{ '{:>{}}'.format(5, 999999999) }}",
    "str.format, often": LONG + "{{ ('{0}' * 1000).format(s) }}",
    "str.format_map": "{{ '{a:0999999999d}'.format_map({'a': 5}) }}",
    "str.format by attr": "{{ ('{:>999999999}'|attr('format'))(5) }}",
    "center": "{{ 'x'|center(10 ** 9) }}",
    "center by keyword": "{{ 'x'|center(width=10 ** 9) }}",
    "str.center": "{{ 'x'.center(10 ** 9)|length }}",
    "str.ljust": "{{ 'x'.ljust(10 ** 9)|length }}",
    "str.rjust": "{{ 'x'.rjust(10 ** 9)|length }}",
    "str.zfill": "{{ 'x'.zfill(10 ** 9)|length }}",
    "str.expandtabs": "{{ '\t'.expandtabs(10 ** 9)|length }}",
    "str.translate": "{{ ('a' * 1000000).translate({97: 'b' * 1000000})|length }}",
    "method by attr": "{{ ('x'|attr('center'))(10 ** 9)|length }}",
    "method by map": "{{ (['x']|map(attribute='center')|first)(10 ** 9)|length }}",
    "filter by map": "{{ ['x']|map('center', 10 ** 9)|list|length }}",
    "str.replace": LONG + "{{ s.replace('', s)|length }}",
    "replace": LONG + "{{ s|replace('x', s)|length }}",
    "str.join": LONG + "{{ s.join(range(100000)|map('string'))|length }}",
    "join": LONG + "{{ range(100000)|join(s)|length }}",
    "indent": "{{ ('\n' * 100000)|indent(60000)|length }}",
    "indent, wide": "{{ 'a\nb'|indent(10 ** 9)|length }}",
    "tojson": "{{ [[1]]|tojson(indent=10 ** 9) }}",
    "tojson, text": LONG + "{{ [[1]]|tojson(indent=s) }}",
    "tojson, separators": LONG + "{{ range(100000)|list|tojson(separators=(s, s)) }}",
    "batch": "{{ [1]|batch(10 ** 9, 0)|list|length }}",
    "slice": "{{ [1]|slice(10 ** 9)|list|length }}",
    "round": "{{ 5|round(-10 ** 9) }}",
    "sum of lists": "{{ ([[1] * 1000] * 100000)|sum(start=[])|length }}",
    "pprint": "{{ messages|pprint }}",
    "wordwrap": "{{ ('x' * 100000)|wordwrap(1, true, 'y' * 100000)|length }}",
    "int.to_bytes": "{{ (5).to_bytes(10 ** 9, 'big')|length }}",
    "dict.fromkeys": "{{ {}.fromkeys(range(100000)) }}",
    "add": doubled("'x'", "ns.v + ns.v"),
    "add lists": doubled("[1]", "ns.v + ns.v"),
    "concat": doubled("'x'", "ns.v ~ ns.v"),
    "nested list": doubled("[1]", "[ns.v, ns.v]"),
    "nested tuple": doubled("(1,)", "(ns.v, ns.v)"),
    "nested dict": doubled("{}", "{'a': ns.v, 'b': ns.v}"),
    "nested, printed": doubled("[1]", "[ns.v, ns.v]", "{{ ns.v }}"),
    "nested, hashed": doubled("(1,)", "(ns.v, ns.v)", "{{ {ns.v: 1}|length }}"),
    "nested by dict()": doubled("dict()", "dict(a=ns.v, b=ns.v)"),
    "nested by namespace()": doubled("1", "namespace(a=ns.v, b=ns.v)", "{{ ns.v }}"),
    "set block": "{% set ns = namespace(v='x') %}{% for i in range(99) %}"
    "{% set w %}{{ ns.v }}{{ ns.v }}{% endset %}{% set ns.v = w %}{% endfor %}{{ ns.v|length }}",
    "macro": "{% macro m(v) %}{{ v }}{{ v }}{% endmacro %}" + doubled("'x'", "m(ns.v)"),
    "captured text": "{% set w %}{% for i in range(100000) %}" + "y" * 20000
    + "{% endfor %}{% endset %}{{ w|length }}",
    "captured values": LONG + "{% set w %}{% for i in range(100000) %}{{ s }}{% endfor %}"
    "{% endset %}{{ w|length }}",
    "loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "blocks": "".join(
        f"{{% block b{i} %}}{{{{ self.b{i + 1}() }}}}{{{{ self.b{i + 1}() }}}}{{% endblock %}}"
        for i in range(40)
    )
    + "{% block b40 %}{% endblock %}",
    "recursion": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "a namespace in itself": "{% set ns = namespace() %}{% set ns.v = ns %}{{ ns }}",
    "date": "{{ strftime_now('%0999999999d') }}",
    "date, flags": "{{ strftime_now('%_-099999999Y') }}",
    "date, long": "{{ strftime_now('%c' * 100000) }}",
    "compiled: autoescape": "{% autoescape 'x'|center(10 ** 9) %}{% endautoescape %}",
    "compiled: constants": "{{ 'x'|center(999999999) ~ 'y' }}{{ -('x'|center(999999999)|length) }}",
    "parsed: nested": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "parsed: blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "parsed: digits": "{{ " + "9" * 5000 + " }}",
    "long": "x" * (2 << 20),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((RequestError, UnsupportedModelError), match="chat template"):
        ChatTemplate(BOMBS[name], max_chars=1 << 40).render(HELLO)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown << 10 < 12 * MAX_SIZE, f"{grown >> 10} MiB"


USUAL = {
    "{{ ['a', 'b']|join(', ') }}{{ ', '.join(['a', 'b']) }}": "a, ba, b",
    "{{ 'a\nb'|indent(2) }}{{ 'x'|center(3) }}{{ 'x'.ljust(3) }}.": "a\n  b x x  .",
    "{{ '%05.1f|%s' % (2.5, 'a') }}{{ '%s-%s'|format(1, 2) }}": "002.5|a1-2",
    "{{ '{:>3}{x}'.format(1, x=2) }}{{ 'aXbX'.replace('X', '--', 1) }}": "  12a--bX",
    "{{ {'a': [1, {}]}|tojson(indent=1) }}": '{\n "a": [\n  1,\n  {}\n ]\n}',
    "{{ [1, 2, 3]|sum }}{{ [[1], [2]]|sum(start=[]) }}{{ 2 ** 10 }}{{ 7 % 4 }}": "6[1, 2]10243",
    "{{ 2.567|round(1) }}{{ [1, 2, 3]|batch(2)|list }}": "2.6[[1, 2], [3]]",
    "{% for a in [1, 2] + [3] %}{{ loop.cycle('x', 'y') }}{{ a }}{% endfor %}": "x1y2x3",
    "{% set x %}a{{ 1 }}{% endset %}{{ x ~ x ~ 2 }}": "a1a12",
    "{{ 'abc'[1:] }}{{ [1, 2, 3][::-1] }}{{ 2 in [1, 2] and 'a' < 'b' }}": "bc[3, 2, 1]True",
    "{{ {'b': 1, 'a': 2}|dictsort }}{{ {'a': 1}.items()|list }}": "[('a', 2), ('b', 1)][('a', 1)]",
    "{{ '<a>'|e ~ '<b>' }}{{ 5|int ~ '5'|int }}": "&lt;a&gt;<b>55",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}": "1",
    "{{ messages|map(attribute='role')|map('upper')|join }}": "USER",
    "{% macro m(a) %}[{{ a }}{{ caller() }}]{% endmacro %}{% call m(1) %}x{% endcall %}": "[1x]",
    "{{ strftime_now('%Y')|length }}{{ (1, 2)|tojson }}{{ namespace(a=1).a }}": "4[1, 2]1",
}  # fmt: skip


@pytest.mark.parametrize("source", USUAL)
def test_usual_operations(source: str) -> None:
    assert ChatTemplate(source).render(HELLO) == USUAL[source]


def test_a_long_conversation_is_rendered() -> None:
    """Ten thousand messages, by a template that collects lists and text."""
    source = (
        "{% set ns = namespace(text='', n=0) %}{% for m in messages[1:] + messages[:1] %}"
        "{% if m['role'] == 'user' and m.content is string %}{% set ns.n = ns.n + 1 %}"
        "{{ '<' + m['role'] + '>' ~ m.content|trim ~ m.content.strip().split('x')[-1] }}"
        "{% endif %}{% endfor %}{{ ns.n }}"
    )
    said: list[dict[str, Any]] = [{"role": "user", "content": "hello x"}] * 10_000
    assert ChatTemplate(source).render(said).endswith("10000")


def test_work_that_goes_on_is_ended() -> None:
    source = LONG + "{% for i in range(100000) %}{% if s[1:] == s %}{% endif %}{% endfor %}"
    with pytest.raises(RequestError, match="bytes of values made and read"):
        ChatTemplate(source).render(HELLO)
