"""Chat templates render what transformers renders, byte for byte, and can do nothing else."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError

from scalesim.errors import ConfigError, RequestError, UnsupportedModelError
from scalesim.model.text.chat import (
    CHATML,
    ChatTemplate,
    chosen_chat_template,
    load_chat_template,
)
from scalesim.model.text.tokenizer import load_tokenizer

from .templates_written_here import FAMILIES
from .tokenizers_made_here import NAMED, byte_level

ORACLE = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), **NAMED)
OURS = {name: ChatTemplate(source, NAMED) for name, source in FAMILIES.items()}
TODAY = datetime(2026, 1, 2, 3, 4)

ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
HELLO = [{"role": "user", "content": "hello"}]
words = st.sampled_from(
    ["Hi!", " two\nlines \n", "<|im_end|>", "{{ 7 * 7 }}", "{% raw %}", "é🙂", "</think>"]
)
text = st.lists(words | st.text(max_size=8), max_size=4).map("".join)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(-1, 1)
    | st.text("aé<'\"&", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text("kö", max_size=2), inner, max_size=2)
    ),
    max_leaves=5,
)
arguments = st.dictionaries(st.sampled_from(["who", "naïve"]), json_values, max_size=2)
parts = st.lists(text.map(lambda words: {"type": "text", "text": words}), max_size=2)


@st.composite
def message(draw: st.DrawFn, role: str) -> dict[str, Any]:
    said: dict[str, Any] = {
        "role": role,
        "content": draw(text if draw(st.booleans()) else text | parts),
    }
    if role == "assistant":
        if draw(st.booleans()):
            name, args = draw(st.sampled_from(["walk", "speak"])), draw(arguments | text)
            call = {"type": "function", "function": {"name": name, "arguments": args}}
            said["tool_calls"] = [call] * draw(st.integers(1, 2))
        if draw(st.booleans()):
            said["reasoning_content"] = draw(text)
    return said


conversations = st.one_of(
    st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, max_size=7),
    st.integers(1, 7).map(
        lambda n: ["user", "assistant", "user", "assistant", "user", "assistant", "user"][:n]
    ),
    st.integers(1, 5).map(lambda n: ["system", "user", "assistant", "user", "assistant"][:n]),
).flatmap(lambda roles: st.tuples(*map(message, roles)).map(list))

tools = st.none() | st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {
                    "name": st.sampled_from(["walk", "speak"]),
                    "description": text,
                    "parameters": json_values,
                }
            ),
        }
    ),
    max_size=2,
)


def outcome(render: Callable[[], str]) -> str | None:
    """The prompt; None if the template refuses or fails, whatever kind of failure it is."""
    try:
        return render()
    except (RequestError, TemplateError, TypeError, ValueError, AttributeError, KeyError):
        return None


@pytest.mark.parametrize("family", sorted(FAMILIES))
@given(
    messages=conversations, tools=tools, prompt=st.booleans(), thinking=st.none() | st.booleans()
)
def test_same_bytes_as_transformers(
    family: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    prompt: bool,
    thinking: bool | None,
) -> None:
    variables = {} if thinking is None else {"enable_thinking": thinking}
    theirs = outcome(
        lambda: ORACLE.apply_chat_template(
            messages,
            chat_template=FAMILIES[family],
            tools=tools,
            add_generation_prompt=prompt,
            tokenize=False,
            **variables,
        )
    )
    ours = outcome(
        lambda: OURS[family].render(
            messages, tools=tools, add_generation_prompt=prompt, **variables
        )
    )
    assert ours == theirs


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_ordinary_conversation_is_accepted(family: str) -> None:
    """So that the comparison above is not one of refusals."""
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]
    rendered = OURS[family].render([{"role": role, "content": said} for role, said in turns])
    assert "Hello." in rendered and "Bye" in rendered


def test_the_date_comes_from_the_clock_that_was_passed() -> None:
    template = ChatTemplate(FAMILIES["llama3"], NAMED, now=lambda: TODAY)
    assert "Today Date: 02 Jan 2026\n" in template.render(HELLO)
    assert "Today Date: long ago\n" in template.render(HELLO, date_string="long ago")


def test_missing_values_are_as_if_not_sent() -> None:
    """OpenAI's clients send ``content=None`` beside tool calls; templates test ``is defined``."""
    call = {"function": {"name": "walk", "arguments": {}}}
    sent = {"role": "assistant", "content": None, "tool_calls": [call], "name": None}
    kept = {"role": "assistant", "tool_calls": [call]}
    assert OURS["llama3"].render([*HELLO, sent]) == OURS["llama3"].render([*HELLO, kept])


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_found_under_its_other_names(name: str) -> None:
    template = ChatTemplate("{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}")
    assert template.render([{"role": "assistant", "content": "", name: "hm"}]) == "hm|hm"


def test_messages_are_copied_to_plain_values() -> None:
    class Role(str, enum.Enum):
        USER = "user"

    sent = [{"role": Role.USER, "content": "hi", "extra": ({"n": True},)}]
    template = ChatTemplate("{{ messages[0].role }} {{ messages[0].extra|tojson }}")
    assert template.render(sent) == 'user [{"n": true}]'
    assert sent == [{"role": Role.USER, "content": "hi", "extra": ({"n": True},)}]


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ("hello", "messages is a str; it must be a list of messages"),
        ({"role": "user"}, "messages is a dict"),
        ([], "messages is empty"),
        (["hello"], r"messages\[0\] is a str; it must be a dict"),
        ([{"content": "hi"}], r"messages\[0\] has the role None"),
        ([*HELLO, {"role": 3, "content": "hi"}], r"messages\[1\] has the role 3"),
        ([{"role": "", "content": "hi"}], r"messages\[0\] has the role ''"),
        ([{"role": "user"}], r"messages\[0\] has a content of type NoneType"),
        ([{"role": "user", "content": 7}], r"content of type int"),
        ([{"role": "user", "content": b"hi"}], r"messages\[0\].content is a bytes"),
        ([{"role": "user", "content": ["hi"]}], r"content\[0\] is of type 'str'; only text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            r"messages\[0\].content\[0\] is of type 'image_url'; only text is read",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\] is of type 'text'"),
        ([{"role": "user", "content": "hi", "x": object()}], r"messages\[0\].x is a object"),
        ([{"role": "user", "content": "hi", "x": ENDLESS}], r"messages\[0\] is nested too deeply"),
    ],
)
def test_wrong_messages(messages: Any, error: str) -> None:
    with pytest.raises(RequestError, match=error):
        OURS["chatml"].render(messages)


@pytest.mark.parametrize("tools", ["walk", [print], {"type": "function"}])
def test_wrong_tools(tools: Any) -> None:
    with pytest.raises(RequestError, match="must be a list of JSON schemas"):
        OURS["qwen"].render(HELLO, tools=tools)


def test_a_refusal_keeps_the_words_of_the_template() -> None:
    with pytest.raises(RequestError, match="refuses these messages: Roles must alternate"):
        OURS["llama2"].render([*HELLO, *HELLO])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
        "{{ missing() }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages[0].content.encode('utf-8', 'x', 'y') }}",
    ],
)
def test_a_failing_template_fails_the_request(source: str) -> None:
    with pytest.raises(RequestError, match="the chat template failed on these messages"):
        ChatTemplate(source).render(HELLO)


@pytest.mark.parametrize("source", ["{% for %}", "{{ x", "{% generation %}", "{{ x | nofilter }}"])
def test_a_template_that_is_not_jinja_is_refused_at_load(source: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match="chat template 'default' is not valid at line 1"
    ):
        ChatTemplate(source)


ATTACKS = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ [] | attr('__class__') }}",
    "{{ ['__class__'] | map('attr', '__class__') | list | first | attr('mro') }}",
    "{{ ''['__class__'] }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{{ ('{0.__class__.__mro__}' | attr('format'))('') }}",
    "{{ ''.format.__self__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__closure__ }}",
    "{{ strftime_now['__globals__']['sys'] }}",
    "{{ dict.__base__ }}",
    "{{ dict.mro() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ loop.__init__ }}",
    "{% set ns = namespace() %}{{ ns.__init__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__func__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ dict.update(messages[0], role='x') }}",
    "{% set messages[0].role = 'system' %}",
    "{% do messages.clear() %}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as p %}",
    "{% extends '/etc/passwd' %}",
    "{{ open('/etc/passwd') }}",
    "{{ __import__('os') }}",
    "{{ config }}{{ request.application }}",
    "{{ lipsum.__globals__ }}",
    "{{ lipsum(1000000000) }}",
    "{{ range(10 ** 9) | list }}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ [0] * 10 ** 10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ (1).__class__ }}",
    "{{ (messages | groupby('role'))[0].__class__ }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% for i in range(99999) %}{{ messages[0].content * 100 }}{% endfor %}",
]


@pytest.mark.parametrize("source", ATTACKS)
def test_attacks_are_blocked(source: str) -> None:
    """Each ends in an error, or, where jinja2 gives an undefined value instead, in no text."""
    messages = [{"role": "user", "content": "hello"}]
    try:
        rendered = ChatTemplate(source).render(messages)
    except (RequestError, UnsupportedModelError):
        rendered = ""
    assert rendered == ""
    assert messages == HELLO


def test_the_length_of_a_prompt_is_bounded() -> None:
    template = ChatTemplate(CHATML, max_chars=60)
    assert template.render(HELLO)
    with pytest.raises(RequestError, match=r"more than 60 characters; .* raise max_chars"):
        template.render(HELLO * 2)


def test_loops_are_counted_for_each_rendering_and_thread() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}{{ messages[0].content }}")
    with ThreadPoolExecutor(4) as pool:
        rendered = list(pool.map(lambda _: template.render(HELLO), range(24)))
    assert rendered == ["hello"] * 24


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    yield tmp_path


class TestModelFolder:
    @staticmethod
    def both(folder: Path, **kwargs: Any) -> tuple[str, str]:
        special_tokens = load_tokenizer(folder).special_tokens
        ours = load_chat_template(folder, special_tokens)
        assert ours is not None
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        render = theirs.apply_chat_template
        return ours.render(HELLO, **kwargs), render(
            HELLO, tokenize=False, add_generation_prompt=True, **kwargs
        )

    def configure(self, folder: Path, chat_template: object) -> None:
        config = {**NAMED, "chat_template": chat_template}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

    def test_no_template(self, folder: Path) -> None:
        assert load_chat_template(folder, {}) is None

    def test_in_the_config(self, folder: Path) -> None:
        self.configure(folder, FAMILIES["llama2"])
        ours, theirs = self.both(folder)
        assert ours == theirs == "<|bos|>[INST] hello [/INST]\n"

    def test_in_a_file_of_its_own(self, folder: Path) -> None:
        self.configure(folder, "not this one")
        (folder / "chat_template.jinja").write_text(FAMILIES["qwen"])
        ours, theirs = self.both(folder)
        assert ours == theirs == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"

    @pytest.mark.parametrize("in_files", [False, True])
    def test_several_by_name(self, folder: Path, in_files: bool) -> None:
        named = {"default": "plain", "tool_use": "with {{ tools|length }} tools", "rag": "x"}
        if in_files:
            (folder / "additional_chat_templates").mkdir()
            (folder / "chat_template.jinja").write_text(named.pop("default"))
            for name, source in named.items():
                (folder / f"additional_chat_templates/{name}.jinja").write_text(source)
            (folder / "tokenizer_config.json").write_text("{}")
        else:
            self.configure(folder, [{"name": n, "template": s} for n, s in named.items()])
        assert self.both(folder) == ("plain", "plain")
        assert self.both(folder, tools=[{"name": "walk"}]) == ("with 1 tools", "with 1 tools")

    def test_several_without_a_default(self, folder: Path) -> None:
        self.configure(folder, [{"name": "rag", "template": "x"}])
        template = load_chat_template(folder, {})
        assert template is not None
        with pytest.raises(RequestError, match=r"templates \['rag'\] and none called 'default'"):
            template.render(HELLO)

    @pytest.mark.parametrize("chat_template", [7, ["x"], [{"name": "default"}]])
    def test_of_a_wrong_kind(self, folder: Path, chat_template: object) -> None:
        self.configure(folder, chat_template)
        with pytest.raises(UnsupportedModelError, match="it must be a string, or a list of"):
            load_chat_template(folder, {})


@pytest.mark.parametrize("role", ["usr", "User", "asistant", "narrator", "ipython"])
def test_a_role_that_nobody_knows_is_refused(role: str) -> None:
    with pytest.raises(RequestError, match=rf"messages\[1\] has the role '{role}'"):
        OURS["chatml"].render([*HELLO, {"role": role, "content": "hi"}])


def test_a_typing_error_is_named() -> None:
    with pytest.raises(RequestError, match="did you mean 'user'"):
        OURS["chatml"].render([{"role": "usr", "content": "hi"}])


def test_a_role_that_the_template_names_is_taken() -> None:
    source = "{% for m in messages if m.role == 'narrator' %}{{ m.content }}{% endfor %}"
    template = ChatTemplate(source)
    assert template.render([*HELLO, {"role": "narrator", "content": "It rains."}]) == "It rains."


class TestChosenTemplate:
    def test_chatml_is_assumed_with_a_word(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        template = chosen_chat_template(None, folder, {})
        assert not caplog.records
        wanted = ChatTemplate(CHATML).render(HELLO)
        assert [template.render(HELLO), template.render(HELLO)] == [wanted, wanted]
        (record,) = caplog.records
        assert "chat_template=" in record.getMessage()

    def test_what_is_chosen_is_not_spoken_of(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (folder / "other.jinja").write_text("from a file {{ bos_token }}")
        for chosen, want in (
            ("chatml", ChatTemplate(CHATML).render(HELLO)),
            ("{{ messages[0].content }}!", "hello!"),
            (str(folder / "other.jinja"), "from a file <b>"),
        ):
            template = chosen_chat_template(chosen, folder, {"bos_token": "<b>"})
            assert template.render(HELLO) == want
        assert not caplog.records
        with pytest.raises(ConfigError, match="missing"):
            chosen_chat_template("chat-ml", folder, {})
