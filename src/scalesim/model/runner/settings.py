"""What a runner is built for: its sizes, and how it computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """``max_num_rows`` of ``max_blocks_per_row`` entries is the block table, row 0 a dummy.

    digests : also hash each sampled row's logits (xxh3-64 of their fp32 bytes); copies them all.
    graphs : capture decode steps on a device; without, every step is given to it op by op.
    """

    max_num_seqs: int
    max_num_tokens: int  # query tokens of a step
    max_num_rows: int
    max_blocks_per_row: int
    reproducible: bool = True
    digests: bool = False
    graphs: bool = True
