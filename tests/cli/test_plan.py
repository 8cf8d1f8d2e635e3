"""``scalesim plan``: what binds, and that more of anything never helps the wrong way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.cli import main
from scalesim.errors import ConfigError
from scalesim.replay.hardware import HARDWARE, MODELS
from scalesim.replay.sizing import Disk, Fit, Load, fit

QWEN, H100 = MODELS["qwen2.5-7b"], HARDWARE["h100"]


def planned(host: float = 1e12, device: str = "h100", **load: Any) -> Fit:
    return fit(Load(**{"agents": 1000, **load}), QWEN, HARDWARE[device], int(host))


def test_everybody_resident_needs_no_link_and_no_host() -> None:
    few = planned(agents=100, host=0)
    assert (few.fits, few.missing, few.link_s, few.host_needed_bytes) == (True, 0.0, 0.0, 0)
    assert few.binds == "compute"


def test_long_prefixes_and_short_answers_are_bound_by_the_link() -> None:
    assert planned(prefix=8192, output=8, new=64).binds == "link"
    assert planned(prefix=1024, output=200).binds == "compute"
    assert planned(prefix=8192, output=200, host=1e9).binds == "host memory"
    assert not planned(prefix=8192, host=1e9).fits


def test_the_state_is_what_the_model_says() -> None:
    """Qwen2.5-7B in bf16: 28 layers × 4 KV heads × 128 × K and V × 2 bytes = 56 KiB a token."""
    assert planned(prefix=1948, new=50, output=50).state_bytes == 2048 * 56 * 1024
    assert planned(adapter_bytes=10**9).state_bytes - planned().state_bytes == 10**9


@given(st.integers(10, 20_000), st.integers(100, 10_000), st.integers(10, 500), st.floats(0, 1e12))
def test_more_never_makes_it_faster_and_a_better_machine_never_slower(
    agents: int, prefix: int, output: int, host: float
) -> None:
    base = planned(host, agents=agents, prefix=prefix, output=output)
    assert planned(host, agents=agents, prefix=prefix, output=output + 10).tick_s >= base.tick_s
    better = planned(host + 1e11, agents=agents, prefix=prefix, output=output)
    assert better.tick_s <= base.tick_s * (1 + 1e-9) or better.binds == "link"
    assert base.turns_per_s * base.tick_s == pytest.approx(0.2 * agents)
    assert base.turns_per_s == pytest.approx(1 / max(base.compute_s, base.link_s))


def above_disk(rate: float, size: float = 1e15, **load: Any) -> Fit:
    disk = Disk(int(size), rate)
    return fit(Load(**{"agents": 20_000, **load}), QWEN, H100, int(1e11), disk)


@given(st.floats(1e6, 1e12), st.floats(1e8, 1e15), st.integers(100, 10_000))
def test_a_disk_never_makes_it_slower(rate: float, size: float, prefix: int) -> None:
    without = planned(1e11, agents=20_000, prefix=prefix)
    some = above_disk(rate, size, prefix=prefix)
    assert some.tick_s <= without.tick_s * (1 + 1e-9) or some.binds == "link"
    assert some.on_disk + some.rebuilt == pytest.approx(without.rebuilt)
    assert above_disk(2 * rate, size, prefix=prefix).disk_s <= some.disk_s * (1 + 1e-9) or (
        above_disk(2 * rate, size, prefix=prefix).on_disk > some.on_disk
    )


def test_what_binds_above_a_disk() -> None:
    assert above_disk(1e12).fits and above_disk(1e12).rebuilt == 0.0
    slow = above_disk(1e8, prefix=8192)
    assert slow.fits and slow.binds == "disk" and slow.rebuilt > slow.on_disk > 0.0
    small = above_disk(1e12, size=1e9, prefix=8192)
    assert not small.fits and small.binds == "host memory"


def test_an_agent_that_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match="smaller model or prefix"):
        planned(prefix=10**7)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--agents", "1000"]) == 0
    assert "What binds" in capsys.readouterr().out
    assert main(["plan", "--agents", "1000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True
    assert main(["plan", "--agents", "10", "--hardware", "abacus"]) == 2
    assert "rtx4090" in capsys.readouterr().err
