"""A small Reddit in OASIS on ScaleSim: 24 users, a quarter of them active in each step.

    pip install . camel-oasis 'mcp<2'
    scalesim serve MODEL --served-model-name model --device-memory SIZE &
    python examples/oasis_reddit.py http://127.0.0.1:8000 [--no-hints]

MODEL's chat template must have tools, and SIZE should be too small for all users. OASIS pins old
versions of much, so it runs in an environment of its own. Prints what the server counted meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

os.makedirs("log", exist_ok=True)  # OASIS writes to it when it is imported
import oasis as framework
from camel.models import ModelFactory
from camel.types import ModelPlatformType
from camel.utils import BaseTokenCounter

from scalesim.client import AsyncClient
from scalesim.integrations.oasis import announce, identify

USERS, STEPS, ACTIVE = 24, 8, 6
COUNTS = ("scalesim_calls_total", "scalesim_lookups_total", "scalesim_hits_total",
          "scalesim_demand_loads_total")  # fmt: skip


class ByteCounter(BaseTokenCounter):
    """Counts bytes for tokens: too many, if anything. CAMEL's own downloads another model's
    vocabulary."""

    def count_tokens_from_messages(self, messages: list[Any]) -> int:
        return len(str(messages).encode())

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: list[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


def counts_of(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = [line.rpartition(" ") for line in answer.read().decode().splitlines()]
    return {name: float(value) for name, _, value in lines if name in COUNTS}


async def play(url: str, folder: Path, *, hints: bool) -> None:
    model = ModelFactory.create(
        model_platform=ModelPlatformType.VLLM,
        model_type="model",
        url=f"{url}/v1",
        api_key="none",
        # CAMEL takes a max_tokens of its own for the limit of the whole conversation.
        model_config_dict={"temperature": 0.7, "seed": 1, "extra_body": {"max_tokens": 32}},
        token_counter=ByteCounter(),
    )
    graph = framework.AgentGraph()
    for number in range(USERS):
        info = framework.UserInfo(
            user_name=f"user{number}",
            name=f"User {number}",
            description=f"User {number} writes about the town, and likes bread. " * 8,
            profile=None,
            recsys_type="reddit",
        )
        graph.add_agent(framework.SocialAgent(agent_id=number, user_info=info, model=model))
    env = framework.make(
        agent_graph=graph,
        platform=framework.DefaultPlatformType.REDDIT,
        database_path=str(folder / "reddit.db"),
    )
    await env.reset()
    users = [user for _, user in env.agent_graph.get_agents()]
    identify(users)
    draw = random.Random(7)
    async with AsyncClient(url) as client:
        if hints:
            announce(env, client)
        for _ in range(STEPS):
            await env.step({user: framework.LLMAction() for user in draw.sample(users, ACTIVE)})
    await env.close()


def main() -> None:
    url = sys.argv[1]
    before = counts_of(url)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(url, Path(folder), hints="--no-hints" not in sys.argv))
    after = counts_of(url)
    for name in COUNTS:
        print(f"{name}: {after.get(name, 0.0) - before.get(name, 0.0):.0f}")


if __name__ == "__main__":
    main()
