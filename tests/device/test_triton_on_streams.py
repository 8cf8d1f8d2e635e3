"""The Triton kernels under the GPU's runner: padded graph sizes, placeholders, page copies, in the
interpreter, on streams that run late; the reference kernels' texts up to near-ties."""

from __future__ import annotations

import pytest
import torch
from scalesim_kernels import KernelSet, select

from tests.device.world import hostile, hostile_engine, prompts, runner_of


def texts(kernels: KernelSet, *, graphs: bool = True) -> list[tuple[int, ...]]:
    """Three agents, prompts of 20 tokens, six greedy tokens each, then one more turn of one."""
    device = hostile(order="lazy")
    engine = hostile_engine(
        device, kernels=kernels, watch=False, graphs=graphs, max_num_seqs=3,
        max_num_batched_tokens=64, max_model_len=64, device_pages=24, host_pages=8,
    )  # fmt: skip
    with engine:
        agents = [engine.agent(name) for name in "abc"]
        asked = prompts(3, 20)
        replies = engine.run(
            agent.request(prompt, max_tokens=6, temperature=0.0, ignore_eos=True)
            for agent, prompt in zip(agents, asked, strict=True)
        )
        said = [reply.token_ids for reply in replies if not isinstance(reply, Exception)]
        more = agents[0].generate(
            [*asked[0], *said[0], 1, 2], max_tokens=4, temperature=0.0, ignore_eos=True
        )
        assert runner_of(engine.parts).num_waits == 0
    return [*said, more.token_ids]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for CPUs")
def test_texts_are_the_reference_kernels() -> None:
    """The model's logits have no near-tie here: seeds are fixed, and both sets compute in fp32."""
    expected = texts(select("reference"), graphs=False)
    assert texts(select("triton")) == expected
    assert len(set(expected)) > 1
