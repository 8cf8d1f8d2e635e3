"""``scalesim serve``: the file of options, the keys, and a server that is started and stopped."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from scalesim.cli import main
from scalesim.cli.config_file import with_config_file
from scalesim.cli.options import parse
from scalesim.cli.serve_options import ServeOptions
from scalesim.errors import ConfigError
from tests.engine.world import SHAPE
from tests.model_folders import write_dummy_model
from tests.text.tokenizers_made_here import byte_level


def options(*words: str) -> ServeOptions:
    found = parse(["serve", *words])
    assert isinstance(found, ServeOptions)
    return found


def test_a_file_of_options_and_what_is_typed_over_it(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "model: folder\nport: 9000\nserved-model-name: [town, gpt-4o]\nmax_num_seqs: 7\n"
        "enable-lora: true\ngeneration-config: false\nchat-template:\n"
    )
    found = options("--config", str(file), "--port", "9001")
    assert (found.model, found.port, found.max_num_seqs) == ("folder", 9001, 7)
    assert found.served_model_name == ("town", "gpt-4o")
    assert found.enable_lora and not found.generation_config and found.chat_template is None
    assert options("other", f"--config={file}").model == "other"
    assert with_config_file(["serve", "m", "--port", "1"]) == ["serve", "m", "--port", "1"]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("- a\n", "must hold options"),
        ("a: [", "is not YAML"),
        ("port: {a: 1}\n", "must be a value or a list"),
        ("!!python/object/apply:os.system ['true']\n", "is not YAML"),
        ("prot: 1\n", "prot"),
        ("port: many\n", "many"),
        ("1: 2\n", "must hold options"),
        ("\xff", "must hold options"),
    ],
)
def test_files_that_are_none(
    tmp_path: Path, content: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(content, encoding="utf-8")
    assert main(["serve", "m", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert part in said and said.count("\n") == 1 and "Traceback" not in said


def test_keys_come_from_the_environment_and_from_files(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("third-key-3\nfirst-key-1\n")
    found = options("m", "--api-key", "typed-key-0", "--api-key-file", str(file))
    environment = {"SCALESIM_API_KEY": "first-key-1 second-key-2", "VLLM_API_KEY": "theirs-key-4"}
    assert found.server(environment)["api_keys"] == (
        "typed-key-0", "third-key-3", "first-key-1", "second-key-2", "theirs-key-4",
    )  # fmt: skip
    assert found.server({})["admin_keys"] == ()


def test_adapters_have_names_and_folders() -> None:
    found = options("m", "--lora-modules", "ada=adapters/ada", "bob=b=c")
    here = Path.cwd()
    assert found.adapters() == {"ada": here / "adapters" / "ada", "bob": here / "b=c"}
    for wrong in ("ada", "=x", "ada="):
        with pytest.raises(ConfigError, match="NAME=FOLDER"):
            options("m", "--lora-modules", wrong).adapters()
    with pytest.raises(ConfigError, match="twice"):
        options("m", "--lora-modules", "a=x", "a=y").adapters()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_server_is_started_and_stopped(tmp_path: Path, how: signal.Signals) -> None:
    """It says where it listens at once, answers when the model is there, and ends as it is told."""
    folder = write_dummy_model(tmp_path, SHAPE)
    tokenizer = byte_level()
    tokenizer.save(str(folder / "tokenizer.json"))
    command = [
        sys.executable, "-m", "scalesim", "serve", str(folder), "--port", "0",
        "--device-memory", "8MB", "--host-memory", "0", "--served-model-name", "tiny",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line
            end = time.monotonic() + 60
            while httpx2.get(f"{found[0]}/health").status_code != 200:
                assert time.monotonic() < end
            body = {"prompt": "hi", "max_tokens": 2}
            reply = httpx2.post(f"{found[0]}/v1/completions", json=body)
            assert reply.status_code == 200 and reply.json()["model"] == "tiny"
            process.send_signal(how)
            assert process.wait(30) == (0 if how == signal.SIGTERM else 130)
            said = process.stderr.read()
            assert "serving tiny on cpu" in said and "Traceback" not in said
        finally:
            process.kill()
