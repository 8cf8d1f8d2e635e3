"""Adapters as names of models: each call runs with the adapter that it named, and with no other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engine.world import SHAPE, tiny_engine
from tests.model.adapter_folders import write_adapter
from tests.server.world import KEY, serving

ASKED: dict[str, Any] = {"prompt": "once upon a time", "max_tokens": 12, "temperature": 0}


def test_a_call_runs_with_the_adapter_that_it_names(tmp_path: Path) -> None:
    """Also where one agent changes its adapter from call to call, and calls at once."""
    with tiny_engine() as engine:
        for seed, name in enumerate(("pirate", "poet")):
            write_adapter(tmp_path / name, SHAPE, 4, seed=seed + 1)
            engine.adapters.add(name, tmp_path / name)
        with serving(engine) as server:
            client = server.client()
            assert [model.id for model in client.models.list()] == ["tiny", "pirate", "poet"]
            assert client.models.retrieve("poet").model_extra["parent"] == "tiny"  # type: ignore[index]

            def say(model: str, **more: Any) -> str:
                return client.completions.create(model=model, **ASKED, **more).choices[0].text

            want = {name: say(name) for name in ("tiny", "pirate", "poet")}
            assert len(set(want.values())) == 3
            ada = {"extra_body": {"agent_id": "ada"}}
            for name in ("pirate", "tiny", "poet", "tiny", "pirate"):
                assert say(name, **ada) == want[name]
            assert engine.agent("ada").adapter == "pirate"

            async def at_once() -> list[str]:
                url = f"{server.url}/v1"
                async with openai.AsyncOpenAI(base_url=url, api_key=KEY) as many:
                    calls = [many.completions.create(model=name, **ASKED, **ada) for name in names]
                    return [reply.choices[0].text for reply in await asyncio.gather(*calls)]

            names = ["tiny", "pirate", "poet"] * 8
            assert asyncio.run(at_once()) == [want[name] for name in names]
            engine.adapters.remove("poet")
            with pytest.raises(openai.NotFoundError, match="model 'poet' is not served"):
                say("poet")
            assert say("tiny@ada") == want["tiny"] and say("pirate@bob") == want["pirate"]
