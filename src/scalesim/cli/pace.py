"""The demo's paced link: what moving state costs beside a GPU, as against computing it.

On a CPU both pools are the same memory, and a copy costs next to nothing. So the demo slows its
copies to the rate at which a token's state crosses the link in the same share of the time that its
prefill takes as on the GPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from scalesim.engine.engine import Engine
from scalesim.replay.hardware import HARDWARE, MODELS, Hardware, ModelCosts, named
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams

GPU_MODEL = MODELS["qwen2.5-7b"]


@dataclass(frozen=True, slots=True)
class Pace:
    """``here``: tokens a second that this machine prefills, measured; ``token_bytes``: of a token's
    state; ``share``: of the GPU's link that is to be had."""

    hardware: Hardware
    here: float
    token_bytes: float
    share: float = 1.0
    model: ModelCosts = GPU_MODEL

    @property
    def gpu_prefill(self) -> float:
        """Tokens a second that the GPU prefills, by its peak and the attained share of that."""
        return self.hardware.peak_flops * self.hardware.gemm_share / (2 * self.model.num_params)

    @property
    def gpu_link(self) -> float:
        """Tokens a second whose state crosses the GPU's link."""
        return self.share * self.hardware.link_bytes_per_s / self.model.token_bytes

    @property
    def bytes_per_s(self) -> int:
        """What the link here is slowed to."""
        return max(int(self.here * self.gpu_link / self.gpu_prefill * self.token_bytes), 1)

    def __str__(self) -> str:
        part = "" if self.share == 1.0 else f"{self.share:.0%} of "
        return (
            f"Copies are slowed to {self.bytes_per_s / 1e6:.0f} MB/s: a token's state moves "
            f"{self.gpu_link / self.gpu_prefill:.0f} × as fast as it is computed (prefill "
            f"{self.here:.0f} tokens/s here), as with {self.model.name} over {part}the link of a "
            f"{self.hardware.name} ({self.gpu_prefill:.0f} tokens/s prefilled, "
            f"{self.gpu_link:.0f} moved)."
        )


def hardware_named(name: str) -> Hardware:
    """Raises ``ConfigError`` with the names that there are."""
    return named(HARDWARE, name, "hardware")


def prefill_rate(engine: Engine, chats: Sequence[list[dict[str, str]]]) -> float:
    """Tokens a second that ``engine`` prefills, of ``chats`` that it has not seen; the first of
    them warms it up."""
    params = SamplingParams(max_tokens=1)
    engine.run([Request(chats[0], params=params)])
    before, begin = engine.stats, time.perf_counter()
    engine.run([Request(chat, params=params) for chat in chats[1:]])
    took_s = time.perf_counter() - begin
    after = engine.stats
    computed = after.prompt_tokens - after.cached_tokens
    return (computed - (before.prompt_tokens - before.cached_tokens)) / took_s
