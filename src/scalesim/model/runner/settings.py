"""Settings of a runner: its sizes and how it computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """Sizes and options of a runner.

    The block table is ``[max_num_rows, max_blocks_per_row]``; its row 0 is a dummy.

    digests : also hash the logits of each sampled row (xxh3-64 of their fp32 bytes), which copies
        all these logits to the host.
    graphs : capture decode steps as CUDA graphs; otherwise every step is submitted op by op.
    """

    max_num_seqs: int
    max_num_tokens: int  # query tokens per step
    max_num_rows: int
    max_blocks_per_row: int
    reproducible: bool = True
    digests: bool = False
    graphs: bool = True
