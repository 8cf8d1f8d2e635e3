"""The paced link: the same share of prefill's time here as on the GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scalesim.cli.pace import Pace, hardware_named
from scalesim.errors import ConfigError


def test_a_token_moves_as_fast_against_its_prefill_as_on_the_gpu() -> None:
    pace = Pace(hardware_named("h100"), here=5000.0, token_bytes=4096.0)
    here = pace.bytes_per_s / pace.token_bytes / pace.here
    assert here == pytest.approx(pace.gpu_link / pace.gpu_prefill, rel=1e-6)
    assert 20 < here < 30  # of Qwen2.5-7B on an H100: 52 GB/s, 57 kB a token, 37,000 tokens/s
    assert replace(pace, here=10_000.0).bytes_per_s == pytest.approx(2 * pace.bytes_per_s, abs=2)
    assert replace(pace, share=0.1).bytes_per_s == pytest.approx(0.1 * pace.bytes_per_s, abs=2)
    assert replace(pace, here=1e-9).bytes_per_s == 1  # a link that moves nothing would hang


def test_a_slower_processor_beside_its_link_has_the_faster_one() -> None:
    ratios = {}
    for name in ("h100", "rtx4090"):
        pace = Pace(hardware_named(name), 1000.0, 4096.0)
        ratios[name] = pace.gpu_link / pace.gpu_prefill
        assert name in str(pace)
    assert ratios["rtx4090"] > ratios["h100"]


def test_unknown_hardware() -> None:
    with pytest.raises(ConfigError, match="unknown hardware 'abacus'; there are: h100"):
        hardware_named("abacus")
