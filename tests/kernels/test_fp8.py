"""KV in e4m3: every set stores what the specification says, reads it exactly, and gives a token the
same bits in a decode and in any prefill."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from scalesim_kernels import KernelSet, PagedBatch, select
from scalesim_kernels.conformance.paged import same_bits
from scalesim_kernels.conformance.steady import steady_interpreter
from scalesim_kernels.cpu import cpu_kernels
from scalesim_kernels.cpu_rows import HAS_NUMBA
from scalesim_kernels.float8 import FLOAT8, narrowed
from torch import Tensor

from .test_cpu_reproducible import Context

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of NaN in the interpreter
]
CODES = torch.arange(256, dtype=torch.int32).to(torch.uint8)
NUMBERS = CODES.view(FLOAT8).float()
SETS = ["compiled", "torch", "triton", "reference"]


@pytest.fixture(params=SETS)
def kernels(request: pytest.FixtureRequest) -> Iterator[KernelSet]:
    if request.param in ("compiled", "torch"):
        yield cpu_kernels(compiled=request.param == "compiled" and HAS_NUMBA)
        return
    with steady_interpreter():
        yield select(request.param)


def awkward() -> Tensor:
    """Numbers of e4m3, the middles between neighbours, what is beside those, and what is beyond."""
    known = NUMBERS[NUMBERS.isfinite()].sort().values
    middles = (known[1:] + known[:-1]) / 2
    up, down = (torch.nextafter(middles, torch.tensor(to)) for to in (torch.inf, -torch.inf))
    beyond = torch.tensor([448.1, 463.9, 464.0, 480.0, 1e30, torch.inf, torch.nan, 1e-30, 2.0**-10])
    found = torch.cat((NUMBERS, middles, up, down, beyond, -beyond))
    return torch.cat((found, torch.zeros(-len(found) % 64)))


def stored(kernels: KernelSet, values: Tensor) -> Tensor:
    """What a pool of e4m3 keeps of V, ``[num_tokens, 64]``; a sequence a token."""
    context = Context(1, 1, 64, 16, length=len(values))
    pool = torch.zeros(context.pool.shape, dtype=torch.uint8).view(FLOAT8)
    batch = context.batch((0, 0, len(values)))
    plan = kernels.plan(batch, pool, 1, True, dtype=torch.float32)
    qkv = torch.cat((torch.zeros(len(values), 128), values), 1)
    cos_sin = torch.zeros(len(values), 64)
    kernels.qk_norm_rope_store(qkv, pool, 0, batch, plan, cos_sin, None, None, 1e-5)
    positions = torch.arange(len(values))
    pages = torch.from_numpy(context.table[1])[positions // 16].long()
    return pool.view(torch.uint8)[pages, 0, 1, 0, positions % 16]


def test_stores_round_to_the_nearest_and_saturate(kernels: KernelSet) -> None:
    values = awkward().view(-1, 64)
    found, want = stored(kernels, values), narrowed(values, FLOAT8).view(torch.uint8)
    sound = ~values.isnan()
    assert torch.equal(found[sound], want[sound])
    assert ((found[~sound] & 0x7F) == 0x7F).all()
    assert int((found[sound] & 0x7F).max()) == 0x7E  # 448, and no NaN


def test_every_number_is_read_exactly(kernels: KernelSet) -> None:
    """A token that sees itself alone gets its own V."""
    context = Context(1, 1, 64, 16, length=4)
    numbers = torch.where(NUMBERS.isnan(), 0.0, NUMBERS).view(4, 64)
    pool = torch.zeros(context.pool.shape, dtype=torch.uint8).view(FLOAT8)
    batch = context.batch(*((row, 0, 1) for row in range(3)))
    for row in range(3):
        pages = int(context.table[row + 1, 0])
        pool.view(torch.uint8)[pages, 0, 1, 0, 0] = numbers[row].to(FLOAT8).view(torch.uint8)
    plan, out = kernels.plan(batch, pool, 1, True, dtype=torch.float32), torch.empty(3, 1, 64)
    kernels.paged_decode(torch.randn(3, 1, 64), pool, 0, batch, plan, 1.0, out)
    assert torch.equal(out[:, 0], numbers[:3])


class Float8Context(Context):
    """KV in e4m3, Q in fp32."""

    def attend(self, kernels: KernelSet, *parts: tuple[int, int, int]) -> list[Tensor]:
        batch: PagedBatch = self.batch(*parts)
        q = torch.cat([self.q[seq, a:b] for seq, a, b in parts])
        pool = narrowed(self.pool, FLOAT8)
        plan = kernels.plan(batch, pool, self.num_heads, True, dtype=q.dtype)
        out = torch.empty_like(q)
        kernels.paged_decode(q, pool, 0, batch, plan, 0.2, out)
        kernels.paged_prefill(q, pool, 0, batch, plan, 0.2, out)
        return list(out.split([stop - start for _, start, stop in parts]))


@pytest.mark.parametrize("kernels", ["compiled", "torch", "triton"], indirect=True)
@pytest.mark.parametrize(("group", "head_dim"), [(2, 32), (3, 24), (7, 64)])
def test_decode_and_any_prefill_have_the_same_bits(
    kernels: KernelSet, group: int, head_dim: int
) -> None:
    if kernels.name == "triton" and head_dim % 16:
        pytest.skip("the Triton kernels take heads of 16, 32, 48, ... elements")
    context = Float8Context(group, 1, head_dim, 16, length=130)
    whole = context.attend(kernels, (0, 60, 130))[0]
    cut = context.attend(kernels, (0, 60, 67)) + context.attend(kernels, (1, 0, 3), (0, 67, 130))
    assert same_bits(torch.cat((cut[0], cut[2])), whole)
    for position in (60, 63, 64, 127, 128, 129):
        among = context.attend(kernels, (1, 9, 10), (0, position, position + 1), (2, 0, 5))
        assert same_bits(among[1][0], whole[position - 60]), position
