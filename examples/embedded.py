"""ScaleSim inside a simulation's own loop, in one screen: ask who is due, say who is due next.

    python examples/embedded.py

The model is the small one of the demo's village. Its device pool cannot hold everybody.
"""

from __future__ import annotations

import random
from pathlib import Path

from hit_rate import hit_rate

import scalesim
import scalesim.village

MODEL = Path(scalesim.village.__file__).parent / "model"
NAMES = ("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Greta", "Hugo")
TICKS = 12


def main() -> None:
    draw = random.Random(0)
    due = {name: draw.randint(1, 4) for name in NAMES}  # the tick of each one's next call
    settings = {"device": "cpu", "device_memory": "1500kB", "host_memory": "64MB"}
    with scalesim.Engine(MODEL, **settings) as engine:
        people = {name: engine.agent(name) for name in NAMES}
        chats = {name: [said("system", f"You are {name}, a miller. " * 8)] for name in NAMES}
        engine.expect(due)
        for tick in range(1, TICKS + 1):
            engine.tick()
            asked = [name for name in NAMES if due[name] == tick]
            for name in asked:
                chats[name].append(said("user", "It is morning. What do you say?"))
            requests = [people[name].request(chats[name], max_tokens=24) for name in asked]
            for name, reply in zip(asked, engine.run(requests), strict=True):
                assert isinstance(reply, scalesim.Reply), reply
                chats[name].append(said("assistant", reply.text or ""))
                print(f"{tick:2} {name}: {reply.text}")
                due[name] = tick + draw.randint(2, 5)
            engine.expect({name: due[name] - tick for name in asked})
        print(hit_rate(engine))


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


if __name__ == "__main__":
    main()
