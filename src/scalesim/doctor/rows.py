"""The numbers of rows for which the machine's matrix library gives a row the same bits.

Reproducible mode on a CPU relies on these numbers, and its speed depends on them.
"""

from __future__ import annotations

import torch
from scalesim_kernels.cpu_attention import Heads, ask
from scalesim_kernels.cpu_rows import (
    ALONE,
    BASE,
    FEW_ROWS,
    HAS_NUMBA,
    Agreement,
    linear_product,
    pack_weight,
)

from scalesim.doctor.findings import Section, Settings
from scalesim.engine.build import resolve_device

WIDTHS = (64, 896, 2048)
OUT = 512  # columns of the matrices asked about
HEADS = ((4, 2, 64), (7, 2, 64))  # query heads a KV head, KV heads, head dimension
KNOB = "reproducible=False, or another torch or processor"


def probe(settings: Settings) -> Section:
    section = Section("rows")
    if resolve_device(settings.device) != "cpu":
        return section
    section.facts["capability"] = torch.backends.cpu.get_cpu_capability()
    section.facts["threads"] = torch.get_num_threads()
    for dtype in (torch.float32, torch.bfloat16):
        for width in WIDTHS:
            weight = torch.randn(OUT, width).to(dtype)
            packed = pack_weight(weight)
            for form, matrix in {"plain": weight, "packed": packed}.items():
                if form == "plain" or packed is not weight:
                    name = f"{form} {str(dtype).split('.')[-1]}, width {width}"
                    answer = linear_product(matrix).ask(width, dtype)
                    report(section, name, answer, used=(form == "packed") == packed.is_mkldnn)
    if HAS_NUMBA:
        section.facts["attention float32"] = "compiled: a row's bits follow from its sequence"
        compiled_kernels(section)
    else:
        gathered_attention(section)
    return section


def compiled_kernels(section: Section) -> None:
    """Whether the kernels that numba compiles came from its cache, or what they took."""
    from scalesim_kernels import cpu_paged  # noqa: F401  (compiles, or loads)
    from scalesim_kernels.cpu_kernel import compilations

    if not compilations.names:
        section.facts["compiled kernels"] = "from the cache"
        return
    section.facts["compiled kernels"] = (
        f"{len(compilations.names)} were not in the cache and took {compilations.seconds:.0f} s"
    )
    if not compilations.kept:
        section.find(
            "note",
            "numba has no folder for a cache, so kernels are compiled in every process",
            "NUMBA_CACHE_DIR=a folder that can be written to",
        )


def gathered_attention(section: Section) -> None:
    """How torch's attention must be called, where numba is missing."""
    section.find(
        "note",
        "numba is missing: attention copies its pages before it reads them, which is slower",
        "pip install numba",
    )
    for group, num_kv_heads, head_dim in HEADS:
        found = ask(Heads(group, num_kv_heads, head_dim, torch.float32, torch.get_num_threads()))
        name = f"attention float32, {group * num_kv_heads} heads of {head_dim}"
        section.facts[name] = (
            f"tiles {'together' if found.together else 'one by one'}, decodes in "
            f"{'small' if found.small_decodes else 'whole'} tiles"
        )
        if not found.together:
            text = f"{name}: a tile's bits depend on others in the call, so each is its own; slower"
            section.find("note", text, KNOB)


def report(section: Section, name: str, answer: Agreement, *, used: bool) -> None:
    """Add the fact, and a note if reproducible mode is slow in the form that models use."""
    sizes = answer.sizes
    if sizes == ALONE:
        fact = "a row a call"
    else:
        sides = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
        fact = f"{sides} rows a call, {len(sizes)} sizes"
    section.facts[name] = f"{fact}; up to {FEW_ROWS} by our own kernel" if answer.few else fact
    if used and sizes[-1] <= BASE:
        section.find(
            "note",
            f"{name}: the library gives a row other bits with other row counts; reproducible mode "
            f"computes {sizes[-1]} rows a call, which is slower",
            KNOB,
        )
