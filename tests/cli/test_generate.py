"""``scalesim generate`` on a random model with a tokenizer made here; an error is one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scalesim import __version__
from scalesim.cli import main
from scalesim.model.checkpoint.config import ModelConfig
from tests.cli.conftest import TINY
from tests.model.adapter_folders import write_adapter
from tests.model_folders import write_dummy_model
from tests.text.tokenizers_made_here import byte_level

Out = pytest.CaptureFixture[str]
FEW = ("--max-tokens", "6", "--device-memory", "8MB", "--host-memory", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = byte_level()
    config = replace(
        TINY, max_position=128, eos_token_ids=(), vocab_size=tokenizer.get_vocab_size()
    )
    path = write_dummy_model(tmp_path_factory.mktemp("model"), config)
    tokenizer.save(str(path / "tokenizer.json"))
    return str(path)


def test_one_prompt_prints_its_text_only(folder: str, capsys: Out) -> None:
    command = ["generate", folder, "--prompt", "The baker", *FEW]
    assert main(command) == 0
    first = capsys.readouterr()
    assert first.out.strip()
    assert "6 generated" in first.err and "tokens/s" in first.err
    assert main(command) == 0
    assert capsys.readouterr().out == first.out
    assert main([*command, "--seed", "1"]) == 0
    assert capsys.readouterr().out != first.out


def test_an_adapter_changes_the_text(folder: str, tmp_path: Path, capsys: Out) -> None:
    adapter = write_adapter(tmp_path / "it", ModelConfig.from_folder(Path(folder)), rank=8)
    command = ["generate", folder, "--prompt", "The baker", "--temperature", "0", *FEW]
    texts = []
    for more in ([], ["--adapter", str(adapter)]):
        assert main([*command, *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] != texts[1]
    assert main([*command, "--adapter", str(tmp_path / "none")]) != 0
    assert "no such folder" in capsys.readouterr().err


def test_several_prompts_chat_and_sampling(folder: str, capsys: Out) -> None:
    prompts = ["--prompt", "Ada", "--prompt", "Bob"]
    sampling = ["--temperature", "0", "--top-k", "3", "--top-p", "0.9", "--stop", "\n\n"]
    assert main(["generate", folder, *prompts, *FEW, *sampling, "--chat"]) == 0
    caught = capsys.readouterr()
    assert caught.err.index("--- Ada") < caught.err.index("--- Bob")
    assert len(caught.out.splitlines()) >= 2


def test_the_models_own_sampling_holds_where_nothing_is_given(
    folder: str, tmp_path: Path, capsys: Out
) -> None:
    cold = shutil.copytree(folder, tmp_path / "cold")
    (cold / "generation_config.json").write_text(json.dumps({"temperature": 0.01, "top_k": 1}))
    texts = {}
    for name, more in {
        "the folder's": [], "given": ["--temperature", "1.0", "--top-k", "0"],
        "off": ["--no-generation-config"],
    }.items():  # fmt: skip
        assert main(["generate", str(cold), "--prompt", "Ada", *FEW, *more]) == 0
        texts[name] = capsys.readouterr().out
    assert main(["generate", folder, "--prompt", "Ada", *FEW, "--temperature", "0"]) == 0
    assert texts["the folder's"] == capsys.readouterr().out != texts["given"]
    assert texts["given"] == texts["off"]


def test_one_failure_ends_no_other(folder: str, capsys: Out) -> None:
    command = ["generate", folder, "--prompt", "Ada", "--prompt", "much " * 200, *FEW]
    assert main(command) == 2
    caught = capsys.readouterr()
    assert "shorten the prompt" in caught.err
    assert caught.out.strip() and "6 generated" in caught.err


def test_dummy_weights_need_a_config_only(folder: str, tmp_path: Path, capsys: Out) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((Path(folder) / name).read_bytes())
    command = ["generate", str(tmp_path), "--prompt", "Ada", *FEW]
    assert main(command) == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert main([*command, "--dummy-weights"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no prompt was given"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "much " * 200], "shorten the prompt"),
        (["--prompt", "a", "--max-tokens", "0"], "--max-tokens: 0 must be a whole number"),
        (["--prompt", "a", "--max-tokens", "500"], "lower max_tokens"),
        (["--prompt", "a", "--temperature", "nan"], "temperature=nan must be finite"),
        (["--prompt", "a", "--top-p", "0"], "top_p=0 keeps no token"),
        (["--prompt", "a", "--policy", "best"], "policy must be one of: deadline"),
        (["--prompt", "a", "--device-memory", "much"], "write it like 20GB or 512MiB"),
        (["--prompt", "a", "--device-memory", "1kB"], "device_memory=1kB holds 0 pages"),
        (["--prompt", "a", "--max-model-len", "9999"], "more than the model's 128 positions"),
    ],
)
def test_errors_are_one_line(folder: str, options: list[str], message: str, capsys: Out) -> None:
    assert main(["generate", folder, *options]) == 2
    caught = capsys.readouterr()
    assert caught.err.startswith("scalesim: error: ") and caught.err.count("\n") == 1, caught.err
    assert message in caught.err
    assert caught.out == ""


def test_a_missing_model_is_named(capsys: Out) -> None:
    assert main(["generate", "./no/such/model", "--prompt", "a"]) == 2
    assert capsys.readouterr().err == "scalesim: error: ./no/such/model: no such model folder\n"


@pytest.mark.parametrize("options", [["--top-k", "few"], ["--no-such-option"]])
def test_what_does_not_parse_exits_with_2(folder: str, options: list[str], capsys: Out) -> None:
    assert main(["generate", folder, "--prompt", "a", *options]) == 2
    said = capsys.readouterr().err
    assert options[0] in said and said.count("\n") == 1


def test_version_and_help(capsys: Out) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"scalesim {__version__}\n"
    for args in ([], ["--help"]):
        with pytest.raises(SystemExit) as caught:
            main(args)
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert "scalesim demo" in shown and "generate" in shown and "--version" in shown


def test_the_command_line_is_light_until_a_command_runs() -> None:
    code = (
        "import sys, scalesim.cli, scalesim.cli.options as o\n"
        "o.parse(['demo']); print({'torch', 'triton', 'rich.live'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "'torch'" not in done.stdout and "'triton'" not in done.stdout, done.stdout
    assert done.returncode == 0, done.stderr
