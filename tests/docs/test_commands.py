"""Every command in the documentation is one that its program takes: blocks whole, words in the text
by their names. Nothing is run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from scalesim_kernels import __main__ as kernels_main

from benchmarks import __main__ as benchmarks_main
from benchmarks.gpu import __main__ as gpu_main
from scalesim.cli import options
from scalesim.errors import ConfigError
from scalesim.sglang.plugin import POLICY
from scalesim.vllm.settings import PluginSettings
from tests.docs.pages import PAGES, ROOT, Block, blocks_of, inline_code, name_of

BLOCKS = [block for page in PAGES for block in blocks_of(page) if block.language == "sh"]
NOXFILE = (ROOT / "noxfile.py").read_text(encoding="utf-8")
SESSIONS = re.findall(r"^@nox\.session\n(?:@.*\n)*def (\w+)", NOXFILE, re.M)
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
EXTRAS = re.findall(
    r"^(\w[\w-]*) = \[",
    PYPROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0],
    re.M,
)


def commands(code: str) -> list[list[str]]:
    """The words of each command; comments, prompts and what is set in front of it left out."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        parts: list[list[str]] = [[]]
        for word in words:
            if word in ("&&", "||", "|", ";"):
                parts.append([])
            else:
                parts[-1].append(word)
        found += [strip_env(part) for part in parts]
    return [part for part in found if part]


def strip_env(words: list[str]) -> list[str]:
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def check(words: Sequence[str]) -> None:
    """Raises where the program would not take this."""
    match words:
        case ["scalesim", "--version"]:
            pass
        case ["scalesim", *rest]:
            parsed(options.parse, rest)
        case ["python" | "python3", "-m", "scalesim_kernels", *rest]:
            parsed(kernels_main.parser().parse_args, rest)
        case ["python", "-m", "benchmarks.gpu.host"]:
            assert (ROOT / "benchmarks" / "gpu" / "host.py").exists()
        case ["python", "-m", "benchmarks.gpu", *rest]:
            parsed(gpu_main.parser().parse_args, rest)
        case ["python", "-m", "benchmarks", *rest]:
            parsed(benchmarks_main.parser().parse_args, rest)
        case ["nox", "-s", session, *rest]:
            assert session in SESSIONS, f"nox -s {session}: there are {sorted(SESSIONS)}"
            if session == "bench":
                assert rest[:1] == ["--"], rest
                parsed(benchmarks_main.parser().parse_args, rest[1:])
        case ["pip", "install", *rest]:
            check_pip(rest)
        case ["vllm", "serve", _, "--kv-transfer-config", transfer]:
            extra = json.loads(transfer)["kv_connector_extra_config"]
            PluginSettings.of(extra)
        case ["python", "-m", "sglang.launch_server", *_]:
            assert f"--radix-eviction-policy {POLICY}" in " ".join(words)
        case ["curl", url, "--json", body] if url.startswith("localhost:8000/scalesim/"):
            json.loads(body)
        case ["pre-commit", "install"]:
            assert (ROOT / ".pre-commit-config.yaml").exists()
        case ["cd", folder]:
            assert (ROOT / folder).is_dir(), folder
        case ["python", script] if script.endswith(".py"):
            pass  # a block of the same page; its own test runs it
        case ["python", "-m", "venv" | "http.server", *_]:
            pass
        case [".", activate] | ["source", activate]:
            assert activate.endswith("bin/activate"), activate
        case _:
            raise AssertionError(
                f"no rule for the command {shlex.join(words)!r}: add one to check()"
            )


def parsed(parse: Callable[[Sequence[str]], Any], words: Sequence[str]) -> None:
    try:
        parse(list(words))
    except SystemExit as end:
        assert end.code == 0, f"not taken: {shlex.join(words)}"  # 0: --help
    except ConfigError as error:
        raise AssertionError(f"not taken: {shlex.join(words)}: {error}") from None


def check_pip(words: Sequence[str]) -> None:
    for flag, value in pairwise(words):
        if flag == "-c":
            assert (ROOT / value).exists(), value
    for word in words:
        if extra := re.fullmatch(r"(?:scalesim-runtime|\.)\[([\w-]+)\]", word):
            assert extra[1] in EXTRAS, f"extra {extra[1]!r}: there are {EXTRAS}"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_blocks(block: Block) -> None:
    for words in commands(block.code):
        check(words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_words_in_the_text(page: Path) -> None:
    for code in inline_code(page):
        if code.startswith(("nox -s", "python -m benchmarks", "python -m scalesim_kernels")):
            if "..." not in code:
                for words in commands(code):
                    check(words)
        elif code.startswith("scalesim "):
            check_names(code)


def check_names(code: str) -> None:
    """``scalesim COMMAND --option``: both must exist; arguments may be left out."""
    words = shlex.split(code)[1:]
    if words[0].startswith("--"):
        assert words[0] in ("--version", "--help"), code
        return
    if words[0] == "COMMAND":
        return
    assert words[0] in options.COMMANDS, f"{code}: there are {', '.join(options.COMMANDS)}"
    kind = options.COMMANDS[words[0]]
    known = {field.name.replace("_", "-") for field in fields(kind)} | {"help"}
    for word in words[1:]:
        if word.startswith("--"):
            assert word[2:].removeprefix("no-").split("=")[0] in known, f"{code}: no {word}"


def test_the_check_sees_wrong_commands() -> None:
    for wrong in (
        "scalesim plan --agnets 3",
        "scalesim dmeo",
        "python -m scalesim_kernels chek",
        "nox -s bench -- engien",
        "nox -s dosc",
        "pip install 'scalesim-runtime[reprot]'",
        "cd docs/exmaples",
        "rm -r docs",
    ):
        with pytest.raises(AssertionError):
            for words in commands(wrong):
                check(words)
    for wrong in ("scalesim dmeo", "scalesim plan --agnets"):
        with pytest.raises(AssertionError):
            check_names(wrong)
    check_names("scalesim replay w1 --policy deadline")
    assert commands("A=1 scalesim demo --seed 3  # quick\n$ cd docs && nox -s docs") == [
        ["scalesim", "demo", "--seed", "3"],
        ["cd", "docs"],
        ["nox", "-s", "docs"],
    ]
