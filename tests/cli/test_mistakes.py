"""Every option of every command, given what it cannot take: exit code 2 and one line, no traceback.

The table below has a row for each option that the parsers have; a new option without one fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from scalesim import cli
from scalesim.cli import main, options
from tests.model_folders import write_dummy_model
from tests.text.tokenizers_made_here import byte_level

NUMBER = ("0", "-1", "1.5", "x", "", "nan", "1e3", "9" * 5000, "99999999999")
WHOLE = ("-1", "1.5", "x", "", "nan", "9" * 5000)
SHARE = ("0", "25", "-0.1", "nan", "inf", "150%", "x", "%", "1e999")
SHARE_OR_0 = ("25", "-0.1", "nan", "inf", "150%", "x", "")
POSITIVE = ("0", "-1", "nan", "inf", "x", "")
SIZE = ("much", "-1GB", "1XB", "nan", "", "1 2GB")
NAME = ("best", "", "\x1b[31m", "\udc80")
FLAG = ("=maybe",)

WRONG: dict[str, dict[str, tuple[str, ...]]] = {
    "demo": {
        "agents": NUMBER, "resident": (*NUMBER, "65"), "ticks": NUMBER, "seed": WHOLE,
        "policies": (*NAME, "oracle"), "model": ("no/such/folder", "a\0b", "."),
        "hardware": NAME, "link": SHARE, "threads": (*NUMBER, "100000"),
        "voices": FLAG, "capacity": (*NUMBER, "31", "1153"),
        "report": ("", ".", "no/such/folder/x"),
        "timeline": ("", ".", "no/such/folder/x"),
        "picture": ("", ".", "no/such/folder/x"),
    },
    "doctor": {
        "model": ("no/such/folder", "", "a\0b", "."), "device": NAME, "json": FLAG,
        "disk": ("no/such/folder", "", "a\0b", "log.json"),
    },
    "generate": {
        "model": ("no/such/folder", "", "a\0b", "."), "prompt": ("", "much " * 200, "\udc80"),
        "chat": FLAG,
        "adapter": ("no/such/folder", ".", "a\0b"), "max_tokens": NUMBER,
        "temperature": ("-1", "nan", "inf", "x", ""), "top_k": WHOLE,
        "top_p": ("-1", "2", "nan", "x", ""), "generation_config": FLAG, "stop": ("",),
        "seed": WHOLE, "dummy_weights": FLAG, "device": NAME, "device_memory": (*SIZE, "1kB"),
        "host_memory": SIZE, "policy": (*NAME, "oracle"), "block_size": NUMBER,
        "max_model_len": NUMBER, "disk": ("a\0b", "log.json"), "disk_memory": SIZE,
    },
    "serve": {
        "model": ("no/such/folder", "", "a\0b", "."), "host": ("0.0.0.0", "no such host", ""),
        "port": ("-1", "65536", "x", ""), "served_model_name": ("",),
        "api_key": ("short", "with space in it", ""),
        "api_key_file": ("no-such-file", ".", "empty"),
        "admin_key_file": ("no-such-file", ".", "empty"), "enable_lora": FLAG,
        "lora_modules": ("no-equals-sign", "a=", "=b", "a=no/such/folder", "a=."),
        "max_loras": NUMBER, "max_lora_rank": NUMBER, "enable_embeddings": FLAG,
        "max_model_len": NUMBER, "max_num_seqs": (*NUMBER, "999999"),
        "max_num_batched_tokens": (*NUMBER, "3"), "max_open_requests": NUMBER,
        "request_timeout": (*POSITIVE, "1e9"), "drain_timeout": (*POSITIVE, "1e9"),
        "gpu_memory_utilization": SHARE, "chat_template": ("", "{% if %}", "no/such/file.jinja"),
        "generation_config": FLAG, "dtype": NAME, "kv_cache_dtype": NAME,
        "quantization": NAME, "device": NAME, "threads": NUMBER,
        "device_memory": (*SIZE, "1kB"), "host_memory": SIZE, "policy": (*NAME, "oracle"),
        "disk": ("a\0b", "log.json"), "disk_memory": SIZE, "block_size": NUMBER, "seed": WHOLE,
        "dummy_weights": FLAG,
    },
    "replay": {
        "what": ("no-such-file", "", ".", "a\0b", os.devnull), "policy": NAME, "hardware": NAME,
        "model": NAME, "residency": SHARE, "running": NUMBER, "link": SHARE, "warmup": WHOLE,
        "order": NAME, "models": (*NUMBER, "1", "5"),
        "pool": SIZE, "host_pool": SIZE, "disk": (*SIZE, "tape"), "disk_pool": SIZE,
        "format": NAME, "tick": POSITIVE, "block_size": NUMBER,
        "agents": NUMBER, "ticks": NUMBER, "seed": WHOLE, "shared": WHOLE, "private": WHOLE,
        "new": (*NUMBER, "10000000"), "output": NUMBER, "burst": NUMBER,
        "spread": ("x", "", "nan", "-1", "5"), "growth": SHARE_OR_0,
        "active": SHARE, "shuffled": ("maybe",), "hints": NAME,
        "interrupts": SHARE_OR_0, "stale": WHOLE, "wrong": SHARE_OR_0,
    },
    "convert": {
        "trace": ("no-such-file", "", ".", "a\0b", os.devnull, "empty", "log.json"),
        "out": ("", ".", "no/such/folder/x", "log.json"),
        "to": (*NAME, "auto", "town"), "format": NAME, "block_size": NUMBER,
        "out_block_size": NUMBER,
    },
    "plan": {
        "agents": NUMBER, "model": NAME, "hardware": NAME, "host_memory": (*SIZE, "auto"),
        "disk": (*SIZE, "tape"), "disk_memory": (*SIZE, "auto"),
        "active": SHARE, "shared": (*WHOLE, "999999999"), "prefix": (*NUMBER, "999999999"),
        "new": NUMBER, "output": NUMBER, "adapter": (*SIZE, "9" * 40 + "TB"), "json": FLAG,
    },
    "profile": {
        "log": ("no-such-file", "", ".", "a\0b", os.devnull, "empty"), "format": NAME,
        "out": ("no/such/folder/p.html", ".", "empty/p.html", "log.html"),
        "tick": POSITIVE, "day": POSITIVE,
    },
    "check": {
        "kind": NAME,
        "object": ("my_pool", ":", "no_module_anywhere:Pool", f"{__name__}:Nothing",
                   f"{__name__}:Needy", f"{__name__}:quits"),
        "walks": NUMBER, "steps": (*NUMBER, "10000000"), "seed": WHOLE,
    },
    "run": {
        "serve": ("no/such/folder", "a\0b", "."), "device": NAME, "device_memory": (*SIZE, "1kB"),
        "upstream": ("", "localhost", "ftp://a/v1", "http://", "http://a:x/v1", "http://a/v1?b=c"),
        "model": NAME, "hardware": NAME, "host_memory": (*SIZE, "auto"), "residency": SHARE,
        "tick": POSITIVE, "trace": ("no/such/folder/t", ".", "log.json"),
        "out": ("no/such/folder/f.json", ".", "empty/f.json"), "command": (),
    },
}  # fmt: skip
GIVEN = {  # what a command cannot do without
    "doctor": ("model",), "generate": ("model",), "serve": ("model",), "replay": ("what",),
    "profile": ("log",), "check": ("kind", "object"), "convert": ("trace", "out"),
    "run": ("serve",),
}  # fmt: skip


class Needy:
    """Called by ``check policy`` without what it needs."""

    def __init__(self, size: int) -> None:
        self.size = size


def quits() -> None:
    sys.exit(3)


def test_every_option_has_a_row() -> None:
    found = {
        name: {field.name for field in fields(kind)} for name, kind in options.COMMANDS.items()
    }
    assert found == {name: set(rows) for name, rows in WRONG.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from dataclasses import replace

    from tests.cli.conftest import TINY

    tokenizer = byte_level()
    shape = replace(TINY, max_position=128, eos_token_ids=(), vocab_size=tokenizer.get_vocab_size())
    folder = write_dummy_model(tmp_path_factory.mktemp("model"), shape)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with a log whose figures would go over it, a trace and an empty file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.json").write_text('{"user": "a", "step": 1, "messages": []}\n')
    (tmp_path / "trace.jsonl").write_text(
        '{"timestamp": 0, "input_length": 16, "output_length": 2, "hash_ids": [1]}\n'
    )
    (tmp_path / "empty").touch()
    return tmp_path


def good(command: str, model: str) -> dict[str, list[str]]:
    """The words that make ``command`` take its other options."""
    return {
        "doctor": {"model": [model]},
        "generate": {
            "model": [model], "prompt": ["--prompt", "a"], "max_tokens": ["--max-tokens", "2"],
            "device_memory": ["--device-memory", "8MB"], "host_memory": ["--host-memory", "0"],
        },
        "serve": {
            "model": [model], "port": ["--port", "0"], "device_memory": ["--device-memory", "8MB"],
            "host_memory": ["--host-memory", "0"],
        },
        "replay": {"what": ["w4"], "agents": ["--agents", "4"], "ticks": ["--ticks", "3"]},
        "convert": {"trace": ["trace.jsonl"], "out": ["out"], "to": ["--to", "mooncake"]},
        "plan": {"agents": ["--agents", "10"]},
        "profile": {"log": ["log.json"], "out": ["--out", "p.json"]},
        "check": {"kind": ["policy"], "object": ["tests.cli.test_check:OLDEST_FIRST"],
            "walks": ["--walks", "1"], "steps": ["--steps", "1"],},
        "run": {"serve": [model], "command": ["--", "no-such-program"]},
    }.get(command, {})  # fmt: skip


def lines_of(command: str, model: str) -> Iterator[list[str]]:
    for name, values in WRONG[command].items():
        rest = good(command, model)
        is_word = name in GIVEN.get(command, ())
        for value in values:
            flag = f"--{name.replace('_', '-')}"
            if value.startswith("=") and values is FLAG:
                words = [flag + value]
            elif is_word:
                words = [value]
            else:
                words = [f"{flag}={value}"] if value[:1] == "-" else [flag, value]
            placed = {**rest, name: words}
            last = placed.pop("command", [])  # all behind it is the program's
            first = [word for key in GIVEN.get(command, ()) for word in placed.pop(key, [])]
            yield [command, *first, *[word for part in placed.values() for word in part], *last]


@pytest.mark.parametrize("command", WRONG)
def test_what_an_option_cannot_take_is_one_line(
    command: str,
    model: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("scalesim.cli.doctor.examine", lambda settings: pytest.fail("measured"))
    monkeypatch.setattr("scalesim.cli.demo.play_all", lambda *rest: pytest.fail("played"))
    monkeypatch.setenv("COLUMNS", "80")
    before = sorted(here.rglob("*"))
    for line in lines_of(command, model):
        said = [word[:80] for word in line]
        assert main(line) == cli.USER_ERROR, said
        caught = capsys.readouterr()
        last = caught.err.splitlines()[-1]
        assert last.startswith("scalesim: error: ") and len(last) > 30, (said, caught.err)
        assert len(last) < 800 and last.isprintable(), (said, last)
        assert caught.err.count("scalesim: error") == 1 and "Traceback" not in caught.err, said
    assert sorted(here.rglob("*")) == before  # and nothing was written


@pytest.mark.parametrize(
    "line", ["dmeo", "--agents 3", "demo extra", "demo --agent 3", "demo --agents", "plan", "check"]
)
def test_a_line_that_does_not_parse(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith("scalesim: error: ") and said.count("\n") == 1 and "--help)" in said


def test_a_typing_error_is_offered_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    main(["demo", "--agent", "3"])
    assert "did you mean --agents?" in capsys.readouterr().err
    main(["dmeo"])
    assert "there are: demo, doctor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "scalesim: interrupted\n"),
        (BrokenPipeError(), 141, ""),
        (OSError(28, "No space left on device", "p.html"), 2,
         "scalesim: error: p.html: No space left on device\n"),
        (MemoryError("3 GB"), 2, "scalesim: error: out of memory; ask for less: 3 GB\n"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", WRONG)
def test_how_a_command_ends(
    command: str,
    error: BaseException,
    code: int,
    said: str,
    model: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fails(options: object) -> int:
        raise error

    monkeypatch.setattr(f"scalesim.cli.{command}.{command}", fails)
    monkeypatch.setattr(cli, "let_go_of_stdout", lambda: None)
    words = [word for part in good(command, model).values() for word in part]
    assert main([command, *words]) == code
    assert capfd.readouterr().err == said


def test_nobody_reads() -> None:
    """As in ``scalesim plan | head -0``."""
    code = "import sys; from scalesim.cli import main; sys.exit(main(['plan', '--agents', '9']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (cli.NOBODY_READS, b"")


def test_memory_that_the_system_refuses_is_an_error(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(*args: object, **rest: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("scalesim.memory.pools.storage.mmap.mmap", refuses)
    assert main(["generate", model, "--prompt", "a", "--device-memory", "60GB"]) == 2
    said = capsys.readouterr().err
    assert "device_memory" in said and "Cannot allocate memory" in said and "lower it" in said
