"""Ctrl-C and the interpreter's exit leave nothing hanging: whole programs, in processes of their
own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

START = """
import asyncio, signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off
import numpy as np
from scalesim.engine.engine import Engine
from scalesim.errors import EngineClosedError
from scalesim.testing.tag_parts import tag_parts
def new():
    return Engine(tag_parts(device_pages=400, host_pages=0, verify="off", max_num_seqs=8))
def say(word):
    print(word, flush=True)
LONG = dict(max_tokens=6000, ignore_eos=True)
engine = new()
ada, bob = engine.agent("ada"), engine.agent("bob")
"""
EXITS = {
    "an idle engine": "ada.generate([1, 2, 3], max_tokens=3)",
    "an open stream": "stream = ada.stream([1, 2, 3], **LONG); next(stream)",
    "a thread that waits": """
def wait():
    try:
        ada.generate([1], **LONG)
    except EngineClosedError:
        pass
threading.Thread(target=wait, daemon=True).start()
bob.generate([2], max_tokens=3)""",
    "an event loop that was left": """
async def main():
    asyncio.create_task(ada.generate_async([1], **LONG))
    await bob.generate_async([2], max_tokens=3)
asyncio.run(main())""",
    "an async stream that was left": """
async def main():
    async for piece in ada.stream_async([1], **LONG):
        break
asyncio.run(main())""",
    "an engine without calls": "",
    "an engine that was dropped": """
ada.generate([1], max_tokens=3)
del engine, ada, bob
import gc; gc.collect()
assert not [t for t in threading.enumerate() if t.name == "scalesim-engine"]""",
    "an engine that died in step": """
import gc, weakref
def die():
    engine = new()
    def broken(batch):
        raise ZeroDivisionError
    engine.parts.runner.launch = broken
    call = engine.submit(engine.agent("cy").request([1], max_tokens=3))
    try:
        for _ in range(100):
            engine.step()
    except ZeroDivisionError:
        return weakref.ref(engine)
left = die()
gc.collect()
assert left is not None and left() is None""",
}
CALLS = {
    "generate": "ada.generate([1, 2, 3], **LONG)",
    "run": "engine.run([ada.request([1], **LONG), bob.request([2], **LONG)])",
    "stream": "list(ada.stream([1, 2, 3], **LONG))",
    "asyncio": """
async def main():
    async for piece in ada.stream_async([1], **LONG):
        pass
asyncio.run(main())""",
}


def program(body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", START + body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", EXITS)
def test_the_interpreter_exits(name: str) -> None:
    out, err = program(EXITS[name] + '\nsay("end")').communicate(timeout=120)
    assert out == "end\n" and not err, err


@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_gets_through_and_cancels(name: str) -> None:
    lines = ['say("ready")', "while True:", *("    " + line for line in CALLS[name].splitlines())]
    body = "\ntry:" + "".join(f"\n    {line}" for line in lines)
    body += """
except KeyboardInterrupt:
    for _ in range(2):
        bob.generate([4, 5], max_tokens=2)
    assert engine.parts.scheduler.num_running == engine.parts.scheduler.num_waiting == 0
    say("interrupted")
"""
    process = program(body)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert out == "interrupted\n" and process.returncode == 0, err
