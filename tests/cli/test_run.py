"""``scalesim run``: a program that knows nothing of it, against a small server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalesim.cli import main
from scalesim.cli.run import upstream_url
from scalesim.errors import ConfigError
from scalesim.proxy.program import BASE_URLS, environment, served
from tests.docs.folders import write_model
from tests.proxy.upstream import PROGRAM, Upstream


@pytest.fixture
def upstream() -> Iterator[tuple[Upstream, str]]:
    server = Upstream(refuse=1)
    with served(server.app) as url:
        yield server, url


def test_an_unmodified_program(
    upstream: tuple[Upstream, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server, url = upstream
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user")
    monkeypatch.setenv("COLUMNS", "200")
    program, figures, trace = (tmp_path / name for name in ("sim.py", "f.json", "t.jsonl"))
    program.write_text(PROGRAM)
    line = ["run", "--upstream", url, "--out", str(figures), "--trace", str(trace)]
    assert main([*line, "--", sys.executable, str(program)]) == 3  # the program's own
    caught = capfd.readouterr()
    assert caught.out == "the program's own words\n"
    for said in ("31 of 6 agents", "1 failed (1 × 429)", "user 31", "with hints",
                 "What would help most", "agents that fit"):  # fmt: skip
        assert said in caught.err, caught.err
    assert server.headers[0]["authorization"] == "Bearer sk-of-the-user"
    found = json.loads(figures.read_text())
    assert found["traffic"]["calls"] == 31 and 0.5 < found["reuse"]["possible"] < 1.0
    assert [arm["hits"] > 0 for arm in found["arms"]] == [True] * 4
    assert found["capacity"]["on_device"] < found["capacity"]["with_host"]
    assert found["plugin"] is None and "plug-in" not in caught.err
    assert "sk-of-the-user" not in figures.read_text() + trace.read_text() + caught.err
    assert main(["replay", str(trace), "--policy", "deadline"]) == 0


def test_what_a_plug_in_did_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of 30 calls of 100 tokens each; what was counted before is not the program's."""
    monkeypatch.setenv("COLUMNS", "400")
    program, figures = tmp_path / "sim.py", tmp_path / "f.json"
    program.write_text(PROGRAM)
    counts: dict[str, float] = {
        "now": 0.0, "prompt_tokens": 9000, "device_hit_tokens": 9, "host_hit_tokens": 0,
        "saved_blocks": 5, "prefetched_blocks": 5,
    }  # fmt: skip
    with served(Upstream(counts=counts).app) as url:
        line = ["run", "--upstream", url, "--out", str(figures)]
        assert main([*line, "--", sys.executable, str(program)]) == 3
    said = capfd.readouterr().err
    assert "64% of 3000 prompt tokens: 40% on the device, 24% on the host" in said
    assert "Without it: not measured" in said
    assert json.loads(figures.read_text())["plugin"]["device_hit_tokens"] == 1200


def test_a_program_that_makes_no_call(
    upstream: tuple[Upstream, str], capfd: pytest.CaptureFixture[str]
) -> None:
    _, url = upstream
    assert main(["run", "--upstream", url, "--", sys.executable, "-c", "print(1)"]) == 0
    caught = capfd.readouterr()
    assert caught.out == "1\n" and "made no calls" in caught.err and "OPENAI_BASE_URL" in caught.err


def test_a_program_that_cannot_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--upstream", "http://127.0.0.1:9", "--", "no-such-program"]) == 2
    assert "'no-such-program' cannot be run" in capsys.readouterr().err
    assert main(["run", "--upstream", "http://127.0.0.1:9"]) == 2
    assert "-- python my_sim.py" in capsys.readouterr().err


def test_a_programs_signal_is_an_exit_code(upstream: tuple[Upstream, str]) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    assert main(["run", "--upstream", upstream[1], "--", sys.executable, "-c", code]) == 143


def test_the_environment_names_the_proxy_and_keeps_keys() -> None:
    made = environment("http://127.0.0.1:1/v1", {"OPENAI_API_KEY": "k", "no_proxy": "a"})
    assert {made[name] for name in BASE_URLS} == {"http://127.0.0.1:1/v1"}
    assert made["OPENAI_API_KEY"] == made["VLLM_API_KEY"] == "k"
    assert made["no_proxy"] == "a,127.0.0.1,localhost"
    assert environment("u", {})["OPENAI_API_KEY"]  # clients refuse to start without one


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://a:1", "http://a:1/v1"),
        ("https://a/", "https://a/v1"),
        ("http://a/openai/v2/", "http://a/openai/v2"),
    ],
)
def test_urls_of_servers(given: str, url: str) -> None:
    assert upstream_url(given) == url


def test_a_url_that_is_none() -> None:
    with pytest.raises(ConfigError, match="like http://localhost:8000/v1"):
        upstream_url(os.devnull)


def test_a_model_is_served_for_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever the program calls its model, and by whatever it names its agents."""
    monkeypatch.setenv("COLUMNS", "200")
    program = tmp_path / "sim.py"
    program.write_text(
        "import openai\n"
        "client = openai.OpenAI()\n"
        "for tick in range(3):\n"
        "    for agent in range(3):\n"
        "        said = client.chat.completions.create(\n"
        "            model=f'gpt-9@a{agent}', max_tokens=2,\n"
        "            messages=[{'role': 'user', 'content': f'You are a{agent}. ' * 9}])\n"
        "        assert said.usage.prompt_tokens > 50, said\n"
    )
    folder = write_model(tmp_path / "model")
    line = ["run", str(folder), "--device", "cpu", "--device-memory", "8MB"]
    assert main([*line, "--", sys.executable, str(program)]) == 0
    said = capfd.readouterr().err
    assert "9 of 3 agents" in said and "model 9" in said
    assert "67% of the calls repeat a whole prompt" in said


def test_a_model_or_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["run"], ["run", "model", "--upstream", "http://127.0.0.1:9"]):
        assert main([*line, "--", "true"]) == 2
        assert "a MODEL to serve, or --upstream" in capsys.readouterr().err
