"""The compile gate without a GPU: what it fails, and that nothing compiles after the warm-up.

Kernels are compiled in processes of their own: this one runs Triton's interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from scalesim_kernels.compile_only import TARGETS, compiled
from scalesim_kernels.gate import Figures, faults

SM90, MI300 = TARGETS["sm_90"], TARGETS["gfx942"]
GOOD = Figures(
    registers=90, spills=0, shared_bytes=20000, async_copies=20, tensor_core=16, buffers=2,
    in_flight=2,
)  # fmt: skip
DECODE = "llama bf16 / paged_decode / decode_kernel"
SCRIPTS = Path(__file__).parent


def compile_in_a_process(script: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_fails() -> None:
    assert faults(DECODE, SM90, GOOD, GOOD) == []
    assert faults(DECODE, SM90, replace(GOOD, spills=3), GOOD) == ["3 spills"]
    slow = replace(GOOD, async_copies=0, tensor_core=0)
    assert faults(DECODE, SM90, slow, slow) == [
        "no asynchronous copy", "no tensor-core instruction",
    ]  # fmt: skip
    assert faults(DECODE, SM90, replace(GOOD, async_copies=9), GOOD) == [
        "asynchronous copies: 9, 20 before"
    ]
    single = replace(GOOD, buffers=1, in_flight=0)
    assert faults(DECODE, SM90, single, single) == ["no software pipeline"]
    assert faults(DECODE.replace("decode_k", "prefill_k"), SM90, single, GOOD) == [
        "buffers: 1, 2 before", "copies in flight: 0, 2 before",
    ]  # fmt: skip
    assert faults(DECODE, SM90, GOOD, None) == ["not in the table; run with --update"]


def test_what_some_targets_do_not_have() -> None:
    plain = replace(GOOD, async_copies=0, buffers=1, in_flight=0)
    assert faults(DECODE, MI300, plain, plain) == []
    plain = replace(GOOD, async_copies=0)
    exact = replace(GOOD, tensor_core=0)
    assert faults(DECODE.replace("bf16", "fp32"), SM90, exact, exact) == []
    assert faults("llama bf16 / rms_norm / rms_norm_kernel", SM90, plain, plain) == []


def test_a_kernel_without_an_alignment_hint_fails() -> None:
    """Loads through page offsets that Triton knows nothing of: no asynchronous copy."""
    assert compile_in_a_process("compile_unaligned.py").split() == ["hinted", "ok", "bare", "lost"]


def test_nothing_compiles_after_the_warm_up() -> None:
    out = compile_in_a_process("compile_warm_up.py").split()
    assert out[0] == "warm" and int(out[1]) >= 10
    assert out[2:] == ["served", "0"]


def test_a_model_in_pages_compiles_when_it_is_added_and_not_later() -> None:
    """Its KV is smaller than its pages, and its weights move."""
    out = compile_in_a_process("compile_added_model.py").split()
    assert out[0] == "warm" and int(out[1]) >= 10
    assert out[2:] == ["served", "0"]


def test_the_interpreter_compiles_nothing() -> None:
    with pytest.raises(ValueError, match="TRITON_INTERPRET is set"), compiled(SM90):
        pass
