"""Every bad input: its exact status, and OpenAI's error body, which names field and limit."""

from __future__ import annotations

import gzip
import json
import re
import socket
from typing import Any

import httpx2
import pytest

from scalesim.engine.engine import Engine
from scalesim.server.schema.sampling import REFUSED
from tests.server.world import KEY, Running, serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
INNER = re.compile(r"Traceback|File \"|/site-packages|/src/|0x[0-9a-f]{6,}|\.py\b")


def checked(reply: httpx2.Response, status: int, part: str) -> dict[str, Any]:
    """The error of a reply, which must have this status and say ``part``."""
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert part in error["message"], error
    assert len(error["message"]) < 700 and not INNER.search(reply.text)
    assert reply.headers["x-request-id"]
    return error


def post(running: Running, body: Any, path: str = CHAT, **headers: str) -> httpx2.Response:
    content = body if isinstance(body, (bytes, str)) else json.dumps(body)
    return httpx2.post(running.url + path, content=content, headers={**HEADERS, **headers})


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(running: Running, engine: Engine) -> Any:
    """Whatever was refused has cost nothing: no place, no byte, no page, no restart."""
    yield
    assert running.service.open.count == running.service.open.bytes == 0
    assert engine.stats.restarts == 0 and engine.stats.failed == 0


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'"x"', "must be a JSON object"),
        (b'{"messages": []} x', "not JSON"),
        (b'\xff{"a": 1}', "not JSON"),
        (b'{"a": "\xff"}', "invalid unicode"),
        (b'{"a": "\xed\xa0\x80"}', "invalid unicode"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON"),
        (b'{"model": "tiny", "model": "tiny"}', 'duplicate key "model"'),
        (b'{"user": "\\ud800"}', "hex escape"),
        (b'{"user": "\\udc00\\ud800"}', "hex escape"),
        (b'{"temperature": NaN}', "not JSON: expected value"),
        (b'{"temperature": -Infinity}', "not JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "deeper than 64"),
        (b"[" * 50_000, "deeper than 64"),
        (b'{"a":' * 30_000, "deeper than 64"),
        (b"[" * 100_000, "at most 65536"),
    ],
)
def test_json_that_is_none(running: Running, body: bytes, part: str) -> None:
    assert checked(post(running, body), 400, part)["code"] == "invalid_json"


def test_a_whole_pair_of_surrogates_is_a_character(running: Running) -> None:
    body = b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}], "max_tokens": 1}'
    assert post(running, body).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_content_type(running: Running, kind: str) -> None:
    reply = post(running, {"messages": MESSAGES}, **{"content-type": kind})
    checked(reply, 400, "must be application/json")


HUGE = "1e400, without the quotes"
BAD_FIELDS: list[tuple[str, Any, str]] = [
    ("messages", None, "messages"),
    ("messages", [], "messages is empty"),
    ("messages", "hi", "messages"),
    ("messages", ["hi"], "messages[0]"),
    ("messages", [{"role": "user"}], "messages[0]"),
    ("messages", [{"content": "x"}], "role"),
    ("messages", [{"role": "usre", "content": "x"}], "did you mean 'user'?"),
    ("messages", [{"role": "user", "content": 3}], "messages[0]"),
    (
        "messages",
        [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
                ],
            }
        ],
        "only text is read",
    ),
    (
        "messages",
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "//"}}]}],
        "only text is read",
    ),
    ("model", 3, "model=3"),
    ("max_tokens", 0, "max_tokens=0"),
    ("max_tokens", -1, "max_tokens=-1"),
    ("max_tokens", 1.5, "max_tokens=1.5"),
    ("max_tokens", "3", "max_tokens='3'"),
    ("max_tokens", True, "max_tokens=True"),
    ("max_completion_tokens", 0, "max_tokens=0"),
    ("temperature", -0.1, "temperature=-0.1"),
    ("temperature", "1", "temperature='1'"),
    ("temperature", True, "temperature=True"),
    ("temperature", HUGE, "temperature=inf"),
    ("next_call_in", HUGE, "next_call_in=inf"),
    ("top_p", 0, "top_p=0"),
    ("top_p", 1.1, "top_p=1.1"),
    ("top_k", -2, "top_k=-2"),
    ("min_p", 2, "min_p=2"),
    ("presence_penalty", 2.1, "presence_penalty=2.1"),
    ("frequency_penalty", -3, "frequency_penalty=-3"),
    ("repetition_penalty", 0, "repetition_penalty=0"),
    ("n", 0, "n=0 must be a whole number from 1 to 16"),
    ("n", 17, "n=17 must be a whole number from 1 to 16"),
    ("best_of", 3, "best_of=3"),
    ("seed", 2**63, "seed="),
    ("seed", "1", "seed='1'"),
    ("stop", 3, "stop=3"),
    ("stop", [""], "must not be empty"),
    ("stop", [1], "stop=1"),
    ("stop", ["x"] * 65, "stop lists 65 strings, at most 64"),
    ("stop", "x" * 1025, "stop has 1025 characters, at most 1024"),
    ("stop_token_ids", [-1], "stop_token_ids=-1"),
    ("stop_token_ids", [10**6], "outside the vocabulary"),
    ("logit_bias", {"x": 1}, "logit_bias names 'x'"),
    ("logit_bias", {"1": 101}, "logit_bias[1]=101"),
    ("logit_bias", {"1": "a"}, "logit_bias.1='a'"),
    ("logit_bias", {str(i): 0 for i in range(1025)}, "names 1025 tokens, at most 1024"),
    ("logit_bias", {"999999": 1}, "outside the vocabulary"),
    ("top_logprobs", 2, "top_logprobs needs logprobs"),
    ("logprobs", 3, "logprobs=3"),
    ("stream", "yes", "stream='yes'"),
    ("stream_options", [], "stream_options"),
    ("timeout", 0, "timeout=0"),
    ("timeout", "1", "timeout='1'"),
    ("priority", 10**7, "priority="),
    ("more_calls", -1, "more_calls="),
    ("agent_id", [], "agent"),
    ("prompt_embeds", "AAAA", "prompt_embeds"),
    ("chat_template", "{{ x }}", "chat_template"),
    ("use_beam_search", True, "use_beam_search"),
    ("chat_template_kwargs", {"tokenize": True}, "chat_template_kwargs has 'tokenize'"),
    ("cache_salt", "x" * 513, "at most 512 characters"),
    ("regex", "(", "regex cannot be compiled"),
    ("json_schema", {"type": "nonsense"}, "json_schema cannot be compiled"),
    ("json_schema", {"$ref": "http://127.0.0.1:9/x"}, "must point into the schema itself"),
    ("grammar", "x" * 200_000, "at most 131072"),
    ("tools", [{"type": "function"}], "tools[0].function.name"),
    ("tool_choice", "required", "tool_choice='required' needs tools"),
    ("response_format", {"type": "what"}, "response_format.type"),
    *((field, "x", f"{field}: ") for field in REFUSED),
]


@pytest.mark.parametrize(("field", "value", "part"), BAD_FIELDS)
def test_fields_of_a_chat(running: Running, field: str, value: Any, part: str) -> None:
    body = json.dumps({"messages": MESSAGES, "max_tokens": 2, field: value})
    error = checked(post(running, body.replace(f'"{HUGE}"', "1e400")), 400, part)
    found = (error["param"] or "").partition("[")[0].partition(".")[0]
    assert found == field.replace("max_completion", "max"), error


def test_more_tokens_than_there_is_room_for(running: Running) -> None:
    """What is too long is the prompt as well as the output."""
    body = {"messages": MESSAGES, "max_tokens": 10**9}
    error = checked(post(running, body), 400, "max_tokens=1000000000")
    assert (error["code"], error["param"]) == ("context_length_exceeded", None)


def test_more_likely_tokens_than_there_may_be(running: Running) -> None:
    body = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 21}
    checked(post(running, body), 400, "at most 20")


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        (None, "prompt=None"),
        ("", "the prompt is empty"),
        ([], "not empty"),
        ([[]], "the prompt is empty"),
        (["a"] * 257, "prompt lists 257, at most 256"),
        ([-1], "token id -1 is outside the vocabulary"),
        ([10**6], "token id 1000000 is outside the vocabulary"),
        ([10**30], "token ids must be whole numbers"),
        ([1.5], "token ids must be whole numbers"),
        ([True], "token ids must be whole numbers"),
        ([1, "a"], "token ids must be whole numbers"),
        ([["a"]], "token ids must be whole numbers"),
        ([None], "no text and no list"),
        ({"a": 1}, "must be a text"),
    ],
)
def test_prompts(running: Running, prompt: Any, part: str) -> None:
    checked(post(running, {"prompt": prompt}, COMPLETIONS), 400, part)


def test_prompts_that_do_not_fit(running: Running, engine: Engine) -> None:
    room = engine.model.max_len
    for prompt, max_tokens in (("x" * room, 16), ([1] * (room - 3), 4), ([1] * 1_000_000, 1)):
        error = checked(
            post(running, {"prompt": prompt, "max_tokens": max_tokens}, COMPLETIONS), 400, "make"
        )
        assert error["code"] == "context_length_exceeded"
    body = {"prompt": [1] * (room - 3), "max_tokens": 3, "ignore_eos": True}
    assert post(running, body, COMPLETIONS).status_code == 200  # at the limit


def test_bodies_that_are_too_large(running: Running) -> None:
    limit = running.service.limits.max_body_bytes
    body = json.dumps({"messages": MESSAGES, "max_tokens": 1, "x": ""})
    fits = body.replace('"x": ""', '"x": "' + "y" * (limit - len(body)) + '"')
    assert len(fits) == limit and post(running, fits).status_code == 200
    error = checked(post(running, fits + " "), 413, f"larger than {limit} bytes")
    assert error["code"] == "body_too_large"

    def in_chunks() -> Any:
        for _ in range(limit // 65536 + 1):
            yield b" " * 65536

    chunked = httpx2.post(running.url + CHAT, content=in_chunks(), headers=HEADERS)
    checked(chunked, 413, f"larger than {limit} bytes")


def test_a_packed_body_is_not_unpacked(running: Running) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    checked(post(running, bomb, **{"content-encoding": "gzip"}), 400, "Content-Encoding")


def test_headers_that_are_too_many_or_too_long(running: Running) -> None:
    many = {f"x-{i}": "y" for i in range(95)}
    assert httpx2.get(f"{running.url}/v1/models", headers={**HEADERS, **many}).status_code == 431
    long = httpx2.get(f"{running.url}/v1/models", headers={**HEADERS, "x-long": "y" * 33_000})
    checked(long, 431, "at most 32768")
    fits = httpx2.get(f"{running.url}/v1/models", headers={**HEADERS, "x-long": "y" * 32_000})
    assert fits.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/unknown", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/none", 404),
        ("POST", "/v1/models", 405),
        ("GET", CHAT, 405),
        ("DELETE", COMPLETIONS, 405),
        ("POST", "/health", 405),
    ],
)
def test_paths_and_methods(running: Running, method: str, path: str, status: int) -> None:
    reply = httpx2.request(method, running.url + path, headers=HEADERS)
    checked(reply, status, "")
    assert (status == 405) == ("allow" in reply.headers)


def test_what_clients_send_besides_is_ignored(running: Running) -> None:
    body = {
        "messages": MESSAGES, "max_tokens": 1, "user": "x" * 1000, "metadata": {"a": "b"},
        "service_tier": "auto", "reasoning_effort": "low", "verbosity": "low", "store": False,
        "prompt_cache_key": "k", "frobnicate": [1, {"a": None}], "cache_salt": "s",
    }  # fmt: skip
    assert post(running, body).status_code == 200


def test_a_client_names_its_request(running: Running) -> None:
    """The name is repeated if it is plain, and never used."""
    names = {"a-1": "a-1", "x" * 129: None, "a b": None, "": None}
    for name, told in names.items():
        reply = post(running, {"messages": MESSAGES, "max_tokens": 1}, **{"x-request-id": name})
        found = reply.headers["x-request-id"]
        assert found == told if told else found.startswith("req_")


# -- what is no HTTP, or comes too slowly ----------------------------------------------------------


def raw(running: Running, sent: bytes, *, then: bytes = b"") -> bytes:
    """What the server says to ``sent`` until it closes the connection."""
    with socket.create_connection(("127.0.0.1", running.port), 20) as connection:
        connection.sendall(sent)
        said = b""
        while chunk := connection.recv(65536):
            said += chunk
            if then:
                connection.sendall(then)
                then = b""
        return said


HEAD = (
    f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    "content-type: application/json\r\n"
)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
        (HEAD.encode() + b"content-length: -1\r\n\r\n", b"400"),
        (HEAD.encode() + b"content-length: 2, 3\r\n\r\n", b"400"),
        (HEAD.encode() + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", b"400"),
        (HEAD.encode() + b"content-length: 99999999999\r\n\r\n{", b"413"),
        (b"GET / HTTP/1.1\r\nx-long: " + b"y" * 80_000, b"431"),
    ],
)
def test_what_is_no_request(running: Running, sent: bytes, status: bytes) -> None:
    said = raw(running, sent)
    assert said.startswith(b"HTTP/1.1 " + status), said[:200]
    assert set(json.loads(said.partition(b"\r\n\r\n")[2])["error"]) == {
        "message", "type", "param", "code",
    }  # fmt: skip


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nx-a: b",
        HEAD.encode() + b"content-length: 100\r\n\r\n{",
        HEAD.encode() + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
    ],
)
def test_slow_senders(engine: Engine, sent: bytes) -> None:
    with serving(engine, limits={"receive_timeout": 0.2}) as server:
        said = raw(server, sent)
        assert said.startswith(b"HTTP/1.1 408"), said[:200]
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_slow"
        assert server.service.open.count == server.service.open.bytes == 0
