"""Large bodies and replies: parsed and written without holding up the other calls."""

from __future__ import annotations

import gc
import json
from typing import Any

import httpx2
import pytest

from scalesim.server.body import parsed
from tests.server.world import KEY, Running

HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
SHAPES: dict[str, Any] = {
    "lists": [[]] * 100_000,
    "objects": {str(i): {} for i in range(50_000)},
    "numbers": [1.5, 7, -3] * 50_000,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_hardly_a_collection_starts_while_a_body_is_parsed(shape: str) -> None:
    """A collection stops all threads, and looks at all objects that there are. Without a pause
    there are tens to hundreds; when the pause is over, those that were due may start."""
    raw = json.dumps(SHAPES[shape]).encode()
    collections: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            collections.append(phase)

    gc.callbacks.append(note)
    try:
        found = parsed(raw)
        during = len(collections)
    finally:
        gc.callbacks.remove(note)
    assert found == SHAPES[shape] and during <= 3 and gc.isenabled()


def test_the_collector_comes_back_after_an_error(running: Running) -> None:
    body = b"[" * 10_000
    assert httpx2.post(f"{running.url}/tokenize", content=body, headers=HEADERS).status_code == 400
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        parsed(b"[" + b"0," * 10_000 + b"0]")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_long_text_there_and_back(running: Running) -> None:
    text = "mill é " * 40_000
    with httpx2.Client(base_url=running.url, headers=HEADERS, timeout=30) as http:
        tokens = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
        assert tokens["count"] == len(tokens["tokens"]) == len(text.encode())
        told = http.post("/detokenize", json={"tokens": tokens["tokens"]})
    assert told.headers["content-type"] == "application/json" and told.json() == {"prompt": text}


def test_scores_of_many_tokens(running: Running) -> None:
    """As many as are written on a thread, and as those that are not."""
    asked = {"prompt": "once", "logprobs": 20, "n": 8, "seed": 1, "ignore_eos": True}
    with httpx2.Client(base_url=running.url, headers=HEADERS, timeout=30) as http:
        many, few = (
            http.post("/v1/completions", json={**asked, "max_tokens": count}).json()["choices"]
            for count in (40, 4)
        )
    for long, short in zip(many, few, strict=True):
        assert len(long["logprobs"]["token_logprobs"]) == 40
        assert long["logprobs"]["token_logprobs"][:4] == pytest.approx(
            short["logprobs"]["token_logprobs"]
        )
