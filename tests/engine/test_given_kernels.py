"""Kernels that a caller gives: judged when they are given, named when they raise, and not asked
for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scalesim_kernels import KernelSet, select
from scalesim_kernels.conformance import check_op
from scalesim_kernels.signatures import OPTIONS, ops, signature_fault

from scalesim.engine.build import parts_for, with_settings
from scalesim.engine.engine import Engine
from scalesim.errors import ConfigError, EngineClosedError, KernelError
from tests.engine.world import PAGE_BYTES, SHAPE, TOKENIZER, tiny_model

SETS = [select(name) for name in ("cpu", "reference")]
CPU = SETS[0]


def engine_with(**changed: Any) -> Engine:
    settings = {"device_memory": 100 * PAGE_BYTES, "host_memory": 0, "block_size": 16}
    config = with_settings(None, settings)
    kernels: Any = replace(select("cpu"), **changed)
    return Engine(parts_for(tiny_model(), config, kernels, tokenizer=TOKENIZER))


@pytest.mark.parametrize("op", ops())
def test_a_signature_is_judged_when_it_is_given(op: str) -> None:
    """Each op: no parameters, one too many, no function; and the sets' own are right."""
    assert all(signature_fault(op, getattr(each, op), OPTIONS.get(op, ())) is None for each in SETS)
    own = getattr(CPU, op)

    def takes_nothing() -> None: ...

    def asks_for_more(*args: Any, more: int, **options: Any) -> Any:
        return own(*args, **options)

    for wrong in (takes_nothing, asks_for_more, 3, None):
        with pytest.raises(ConfigError, match=rf"kernel {op}\b.*docs/kernels\.md"):
            engine_with(**{op: wrong})
    engine_with(**{op: lambda *args, **options: own(*args, **options)}).close()


@pytest.mark.parametrize("op", ["paged_decode", "paged_prefill"])
@pytest.mark.parametrize("option", ["window", "soft_cap"])
def test_an_attention_without_an_option_serves_all_other_models(op: str, option: str) -> None:
    own = getattr(CPU, op)

    def plain(q: Any, pool: Any, layer: int, batch: Any, plan: Any, scale: float, out: Any) -> None:
        own(q, pool, layer, batch, plan, scale, out)

    with engine_with(**{op: plain}) as engine:
        assert engine.agent("a").generate("hello", max_tokens=3).token_ids
    options: dict[str, Any] = {"window": {"windows": (None, 40)}, "soft_cap": {"soft_cap": 5.0}}
    loaded = tiny_model()
    needs = replace(loaded, config=replace(SHAPE, **options[option]))
    kernels: KernelSet = replace(CPU, **{op: plain})
    with pytest.raises(ConfigError, match=f"{op}.*takes no '{option}'.*this one has it"):
        parts_for(needs, with_settings(None, {}), kernels, tokenizer=TOKENIZER)
    inner = getattr(select("cpu"), op)

    def fresh(q: Any, pool: Any, layer: int, batch: Any, plan: Any, scale: float, out: Any) -> None:
        inner(q, pool, layer, batch, plan, scale, out)

    faults = {
        fault
        for verdict in check_op(replace(select("cpu"), **{op: fresh}), op)
        for fault in verdict.faults
    }
    assert faults
    assert all("takes no '" in fault for fault in faults), faults
    assert any(option in fault for fault in faults)


def test_a_plan_without_a_dtype_serves_kv_in_the_models() -> None:
    def plan(batch: Any, pool: Any, num_heads: int, reproducible: bool) -> Any:
        return CPU.plan(batch, pool, num_heads, reproducible)

    engine_with(plan=plan).close()
    config = with_settings(None, {"kv_dtype": "fp8"})
    with pytest.raises(ConfigError, match=r"kernel plan: .*takes no 'dtype'.*this one has it"):
        parts_for(tiny_model(), config, replace(CPU, plan=plan), tokenizer=TOKENIZER)


@pytest.mark.parametrize("op", ["linear", "paged_prefill", "sample", "silu_mul", "plan"])
def test_a_kernel_that_raises_is_named_and_tried_twice(op: str) -> None:
    tried = []

    def broken(*args: Any, **options: Any) -> Any:
        tried.append(op)
        raise RuntimeError("no such tile")

    with engine_with(**{op: broken}) as engine:
        agent = engine.agent("a")
        with pytest.raises(
            EngineClosedError, match=f"kernel {op} .*broken.*no such tile"
        ) as caught:
            agent.generate("hello", max_tokens=3)
    assert isinstance(caught.value.__cause__, KernelError)
    assert len(tried) == 2


def test_a_kernel_that_raises_now_and_then_costs_time() -> None:
    calls, own = [0], CPU.silu_mul

    def tired(gate_up: Any) -> Any:
        calls[0] += 1
        if calls[0] in (3, 30, 60):
            raise RuntimeError("not now")
        return own(gate_up)

    with engine_with() as engine:
        want = engine.agent("a").generate("hello", max_tokens=30).token_ids
    with engine_with(silu_mul=tired) as engine:
        assert engine.agent("a").generate("hello", max_tokens=30).token_ids == want
        assert engine.stats.restarts == 3
