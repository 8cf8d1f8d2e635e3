"""``scalesim replay`` and ``convert``: what applies is taken, what does not is refused, and the
table fits a terminal of 80 columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scalesim.cli import main
from scalesim.cli.options import ReplayOptions, parse
from scalesim.cli.replay import scenarios, sizes_of, watching
from scalesim.errors import ConfigError
from scalesim.replay.formats import FORMATS, read
from scalesim.replay.peers.policies import REPLAY_POLICIES
from scalesim.replay.scenario import Sizes, of_workload
from scalesim.replay.simulation import Log
from scalesim.replay.workloads import WORKLOADS, workload
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick
from tests.traces import write_trace

Out = pytest.CaptureFixture[str]
SMALL = ["--agents", "12", "--ticks", "4", "--private", "96", "--output", "8", "--running", "4",
         "--model", "llama-3.2-1b"]  # fmt: skip


@pytest.fixture
def trace(tmp_path: Path) -> str:
    ticks = [
        TraceTick(float(at), [], [TraceCall(who, (TracePiece(who, 64), TracePiece(f"n{at}", 9)),
                                            TracePiece("o", 5))
                                  for who in ("ada", "bob", "cy") if (at + len(who)) % 2])
        for at in range(6)
    ]  # fmt: skip
    write_trace(tmp_path / "t.jsonl", ticks)
    return str(tmp_path / "t.jsonl")


@pytest.fixture
def arrivals(tmp_path: Path) -> str:
    rows = [{"timestamp": 4000 * at, "input_length": 700, "output_length": 3,
             "hash_ids": [0, 1 + at]} for at in range(9)]  # fmt: skip
    path = tmp_path / "mooncake.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def refused(capsys: Out, *words: str) -> str:
    """The one line on stderr."""
    assert main(["replay", *words]) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith("scalesim: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["w1", "--active", "0.5"], "--active 0.5 applies to w2 only"),
        (["w1", "--shuffled", "True"], "--shuffled True applies to w4 and w5 only"),
        (["w1", "--stale", "3"], "--stale 3 needs --hints stale"),
        (["w1", "--interrupts", "0.1", "--hints", "exact"], "needs --hints interrupted"),
        (["w1", "--hints", "recorded"], "applies to traces"),
        (["w1", "--hints", "none", "--wrong", "0.5"], "gives none to replace"),
        (["w1", "--format", "mooncake"], "--format mooncake applies to trace files"),
        (["w1", "--tick", "3"], "--tick 3.0 applies to trace files"),
        (["paper", "--block-size", "16"], "--block-size 16 applies to trace files"),
        (["w1", "--residency", "25"], "--residency: 25 must be a share above 0"),
        (["w1", "--residency", "0"], "--residency: 0 must be"),
        (["w1", "--residency", "nan%"], "must be a share"),
        (["w1", "--link", "150%"], "--link: 150% must be a share"),
        (["w1", "--pool", "lots"], "is no amount"),
        (["w1", "--pool", "1MB"], "and the longest call of"),
        (["w1", "--pool", "1GB", "--residency", "10%"], "give one"),
        (["w1", "--running", "0"], "--running: 0 must be"),
        (["w1", "--running", "1000"], "running=1000; it must be 1 to 512"),
        (["w1", "--warmup", "-1"], "--warmup: -1 must be"),
        (["w1", "--policy", "deadline,deadline"], "names deadline twice"),
        (["w1", "--policy", "best"], "unknown policy 'best'"),
        (["w1", "--hardware", "abacus"], "unknown hardware 'abacus'"),
        (["w1", "--model", "none/config.json"], "is missing"),
        (["w9"], "w9 is neither a workload (w1, w2, w3, w4, w5, paper) nor a file"),
    ],
)
def test_what_does_not_apply_is_refused(capsys: Out, words: list[str], says: str) -> None:
    assert says in refused(capsys, *words)


WORKLOAD_ONLY = ("agents", "seed", "shared", "private", "new", "output", "spread", "burst",
                 "growth", "active", "interrupts", "stale", "wrong")  # fmt: skip


@pytest.mark.parametrize("option", WORKLOAD_ONLY)
def test_a_trace_takes_no_option_of_a_workload(capsys: Out, trace: str, option: str) -> None:
    said = refused(capsys, trace, f"--{option}", "1")
    assert f"--{option} 1" in said and "applies to workloads" in said


def test_a_trace_takes_its_own_options(capsys: Out, trace: str, arrivals: str) -> None:
    assert "--hints stale applies to workloads" in refused(capsys, trace, "--hints", "stale")
    assert "ticks of its own" in refused(capsys, trace, "--tick", "3")
    assert "ticks of its own" in refused(capsys, trace, "--step", "3")  # its old name
    assert "--tick: 0 must be" in refused(capsys, arrivals, "--tick", "0")
    assert "unknown format 'csv'" in refused(capsys, trace, "--format", "csv")
    assert "have no blocks" in refused(capsys, trace, "--block-size", "16")
    assert "hash_ids has 2 ids" in refused(capsys, arrivals, "--block-size", "16")


def test_every_knob_changes_something() -> None:
    """So that no option of a workload is taken and ignored: each changes the calls or the hints."""
    base = {"agents": 12, "ticks": 8, "seed": 3, "spread": 0.2}
    knobs = {"agents": 13, "ticks": 9, "seed": 4, "shared": 7, "private": 8, "new": 9, "output": 10,
             "spread": 0.3, "burst": 2, "growth": 0.5, "hints": "none", "wrong": 0.5}  # fmt: skip
    alone = {"active": ("w2", 0.7), "shuffled": ("w4", True)}
    for name in WORKLOADS:

        def told(name: str = name, **more: object) -> list[TraceTick]:
            words = ReplayOptions(name, **{**base, **more})  # type: ignore[arg-type]
            words.check()
            (scenario,) = scenarios(words, sizes_of(words))
            return list(scenario.ticks())

        for knob, value in knobs.items():
            if name == "w2" and knob == "growth":
                value = 0.25
            assert told(**{knob: value}) != told(), (name, knob)
        for knob, (only, value) in alone.items():
            if name == only:
                assert told(**{knob: value}) != told(), (name, knob)


@pytest.mark.parametrize(("text", "value"), [("25%", 0.25), ("0.25", 0.25), ("100%", 1.0),
                                             ("1", 1.0), ("0.5%", 0.005)])  # fmt: skip
def test_shares(text: str, value: float) -> None:
    options = parse(["replay", "w1", "--residency", text])
    assert isinstance(options, ReplayOptions) and options.residency == pytest.approx(value)


@pytest.mark.parametrize("text", ["25", "1.01", "101%", "0", "-1", "inf", "nan", "", "%", "half"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ConfigError, match="--residency"):
        parse(["replay", "w1", f"--residency={text}"])


def test_the_table_fits_80_columns_and_progress_comes_first(
    capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["replay", "w1", *SMALL, "--residency", "50%"]) == 0
    out, error = capsys.readouterr()
    assert error.startswith(f"w1, 12 agents, 4 ticks: {len(REPLAY_POLICIES)} policies")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    rows = [line.split() for line in lines if line.split()[:1] == ["lru-recompute"]]
    assert len(rows) == 1 and len(rows[0]) == 9
    assert "(50% of all state), 4 running" in out
    assert "resident, with a pool for everything, gives" in out
    assert "Small, to be quick" not in out


def test_a_line_every_few_seconds(capsys: Out) -> None:
    now = [0.0]
    kind, knobs = workload("w1", agents=2, ticks=9)
    scenario = of_workload(kind, knobs, Sizes())
    with watching(scenario, ["deadline"], lambda: now[0]) as begin:
        assert capsys.readouterr().err  # at once
        watch = begin("deadline")
        for second in range(12):
            now[0] = float(second)
            watch(Log(tick_s=[0.0] * (second // 2), turns=second))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["deadline: 2 of 10 ticks, 5 calls", "deadline: 5 of 10 ticks, 10 calls"]


def test_a_workload_without_sizes_is_small_and_says_so(
    capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sizes_table(), "w4", (6, 2))
    assert main(["replay", "w4", "--policy", "resident", "--private", "64"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "--agents 200 --ticks 12 --running 32 is the whole of w4" in printed
    assert "of all state), 8 running" in printed


def sizes_table() -> dict[str, tuple[int, int]]:
    from scalesim.cli import replay

    return replay.SMALL


def test_a_crowded_pool_is_said(capsys: Out) -> None:
    words = ["replay", "w4", *SMALL, "--policy", "deadline,resident"]
    assert main([*words, "--residency", "40%"]) == 0
    assert "What ran at once held up to" in capsys.readouterr().out
    assert main([*words, "--residency", "100%", "--running", "1"]) == 0
    assert "What ran at once" not in capsys.readouterr().out


@pytest.mark.parametrize("hints", ["recorded", "exact", "learned", "none"])
def test_a_trace_with_hints(capsys: Out, trace: str, hints: str) -> None:
    assert main(["replay", trace, "--hints", hints, "--warmup", "0", "--policy", "deadline"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert {"exact": "6 with hints", "learned": "hints learned"}.get(hints, "0 with hints") in out
    assert "9 calls" in out and "3 agents" in out


def test_the_learned_source_is_asked(trace: str) -> None:
    options = ReplayOptions(trace, hints="learned")
    (scenario,) = scenarios(options, sizes_of(options))
    assert [source.name for source in scenario.sources()] == ["learned"]
    assert scenario.sources()[0] is not scenario.sources()[0]  # one a policy: it remembers
    (workload_,) = scenarios(ReplayOptions("w1", hints="learned"), Sizes())
    assert [source.name for source in workload_.sources()] == ["learned"]


def test_calls_by_nobody_are_said_to_be(capsys: Out, tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n"
                    + "2023-11-16 18:17:03.9799600,480,10\n" * 5)  # fmt: skip
    assert main(["replay", str(path), "--warmup", "0", "--policy", "deadline,lru-swap"]) == 0
    assert "No call names its agent" in capsys.readouterr().out


def test_ones_own_model_and_device(capsys: Out, trace: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"hidden_size": 64, "intermediate_size": 128, "vocab_size": 99,
                                  "num_hidden_layers": 2, "num_attention_heads": 4}))  # fmt: skip
    device = tmp_path / "slow.json"
    device.write_text(json.dumps({"peak_flops": 1e9, "memory_bytes_per_s": 1e9,
                                  "memory_bytes": 1e9, "link_bytes_per_s": 1e7}))  # fmt: skip
    own = ["--model", str(config), "--hardware", str(device)]
    assert main(["replay", trace, *own, "--policy", "resident", "--pool", "20MB"]) == 0
    assert f"{tmp_path.name} on slow, a pool of 0.02 GB" in capsys.readouterr().out
    assert main(["plan", "--agents", "9", *own, "--host-memory", "1GB"]) == 0


def test_convert(capsys: Out, arrivals: str, tmp_path: Path) -> None:
    out = tmp_path / "own.jsonl"
    assert main(["convert", arrivals, str(out), "--to", "scalesim"]) == 0
    assert "9 calls by 9 agents, mooncake to scalesim" in capsys.readouterr().out
    assert read(out, FORMATS["scalesim"]) == read(Path(arrivals), FORMATS["mooncake"])
    for words, says in (
        ([arrivals, str(out), "--to", "azure"], "is there already"),
        ([arrivals, str(tmp_path / "no" / "x"), "--to", "azure"], "there is no folder"),
        (
            [arrivals, str(tmp_path / "x"), "--to", "town"],
            "'town' is no format that can be written",
        ),
        (
            [arrivals, str(tmp_path / "x"), "--to", "auto"],
            "'auto' is no format that can be written",
        ),
        ([arrivals, str(tmp_path / "x"), "--to", "azure", "--out-block-size", "16"], "no blocks"),
        ([str(out), str(tmp_path / "x"), "--to", "azure", "--block-size", "16"], "no blocks"),
        ([str(tmp_path / "none"), str(tmp_path / "x"), "--to", "azure"], "is missing"),
    ):
        assert main(["convert", *words]) == 2
        assert says in capsys.readouterr().err
