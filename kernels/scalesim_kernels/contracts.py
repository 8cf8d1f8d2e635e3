"""The contract of each op: shapes, dtypes, strides and masks. Implementations differ in speed only.

Common to all ops
-----------------
``pool``        the page pool, ``[num_pages, num_layers, 2, num_kv_heads, block_size, head_dim]``,
                in the model's dtype; index 0 of dimension 2 is K, 1 is V. Each page is
                C-contiguous. A page has ``pool.stride(0)`` elements: more than the model's KV
                where several models share the pages. Offsets into it need int64: a pool may be
                larger than 2**31 elements. ``block_size`` is 16, 32 or 64; on a CPU, that of models
                beside an engine's own may be any multiple of 16.
fp8             where an engine has ``kv_dtype="fp8"``, the pool of the paged ops is in
                ``float8_e4m3fn``. K and V are rounded to the nearest when they are stored, and
                saturate at 448 (``float8.narrowed``); attention reads them exactly. Ops on adapters
                get the same memory in the dtype of ``x``, its last dimension shorter.
layer           which of the pool's layers.
batch, plan     the step's ``PagedBatch``, and what the set's ``plan`` made of it.
garbage         every byte of a page past its sequence's valid positions may hold any bits, NaN and
                Inf among them, and so may pages that a block table row does not name. An op masks
                by position *before* it multiplies: ``0 * NaN`` is NaN, in scores and in P @ V too.
stale entries   ``block_table[row, i]`` for ``i >= ceil(context_len / block_size)`` is arbitrary
                and may be out of range: never load through it.
padding         block table row 0 is the dummy. A token whose ``token_rows`` is 0, or a sequence
                whose ``seq_rows`` is 0, is padding: nothing is stored for it, its output is
                unspecified but for being in bounds. Padding stands last (of the decodes, of the
                other sequences, of the tokens), so that launches can have static shapes.
independence    the result of a row (in attention: of a sequence) has the same bits whatever the
                other rows hold: a NaN in one never reaches another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """The pages and positions that one step reads and writes; the same for all layers.

    Sequence ``i`` has the tokens ``query_start[i]:query_start[i + 1]``, at consecutive positions
    that end at ``context_lens[i] - 1``. All arrays are C-contiguous int32.
    """

    block_table: Tensor  # [num_rows, max_blocks], page ids
    positions: Tensor  # [num_tokens], absolute; 0 for padding
    token_rows: Tensor  # [num_tokens], block table rows; 0 marks padding
    seq_rows: Tensor  # [num_seqs], block table rows; 0 marks padding
    query_start: Tensor  # [num_seqs + 1]
    context_lens: Tensor  # [num_seqs], this step's query tokens included; 0 for padding
    num_decodes: int  # the first so many sequences have one query token; of padding, at most one


class RmsNorm(Protocol):
    def __call__(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``s = x + residual`` (``s = x`` without one); returns ``(s / rms(s) * weight, s)``.

        x, residual : ``[num_tokens, hidden]``, C-contiguous; ``residual`` may be overwritten.
        weight : ``[hidden]``, the dtype of ``x``, or fp32: then the product is rounded once. The
            root mean square of a row is computed in fp32; ``eps`` is added to the mean of squares.
        """


class QkNormRopeStore(Protocol):
    def __call__(
        self,
        qkv: Tensor,
        pool: Tensor,
        layer: int,
        batch: PagedBatch,
        plan: Any,
        cos_sin: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        eps: float,
    ) -> Tensor:
        """Normalize (Qwen3) and rotate Q and K, write K and V to their pages, return Q.

        qkv : ``[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]``, C-contiguous, heads in
            the order Q, K, V. May be overwritten.
        cos_sin : ``[max_positions, head_dim]``, the model's dtype: cosines, then sines, of
            ``head_dim / 2`` angles. Element ``j`` of a head turns with ``j + head_dim / 2``.
        q_weight, k_weight : ``[head_dim]`` or None (no norm): RMSNorm per head with ``eps``,
            before rotation; dtypes as in ``rms_norm``.
        returns : Q, ``[num_tokens, num_heads, head_dim]``; the last dimension is contiguous.

        Token ``t`` goes to page ``block_table[token_rows[t], positions[t] // block_size]``, slot
        ``positions[t] % block_size``. Writes nothing else: other slots of the page keep their bits.
        """


class PagedAttention(Protocol):
    def __call__(
        self,
        q: Tensor,
        pool: Tensor,
        layer: int,
        batch: PagedBatch,
        plan: Any,
        scale: float,
        out: Tensor,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> None:
        """Causal attention of query tokens over their sequence's cached pages, into ``out``.

        q, out : ``[num_tokens, num_heads, head_dim]``, all of the step's tokens; ``out`` is
            C-contiguous. Query head ``h`` reads KV head ``h // (num_heads / num_kv_heads)``.
        ``paged_decode`` covers sequences ``0:num_decodes`` (token ``i`` is sequence ``i``) and
        ``paged_prefill`` the others, whose query tokens may start at any position; each writes only
        its own rows of ``out``. A token at position ``p`` attends to positions ``0..p``, which the
        pages hold, the step's own tokens included; scores are multiplied by ``scale``.
        Softmax and sums in fp32.
        window : of these, only the last ``window`` positions, its own included (Mistral, Gemma).
            Layers of one step may differ. Pages before it may still be read, and are still valid.
        soft_cap : scores, after ``scale``, become ``soft_cap * tanh(score / soft_cap)`` (Gemma 2).
        Both are given by keyword, and only where a model has them: an op without them serves all
        other models.
        """


class PlanAttention(Protocol):
    def __call__(
        self, batch: PagedBatch, pool: Tensor, num_heads: int, reproducible: bool,
        dtype: torch.dtype | None = None,
    ) -> Any:  # fmt: skip
        """Work done once per step for all layers and ``num_heads`` query heads; handed unread to
        the ops that take a ``plan``.

        A set with nothing to prepare returns None. With ``reproducible`` a token's attention must
        have the same bits in ``paged_decode`` and ``paged_prefill``, whatever the batch and
        chunking. The block table does not change between a plan and the last op that takes it:
        a set may read it at either time.
        dtype : of Q, given by keyword and only where it is another than the pool's, with KV in fp8.
        """


class PackWeight(Protocol):
    def __call__(self, weight: Tensor) -> Tensor:
        """``weight``, ``[out, in]``, in the layout with which the set's ``linear`` is fastest.

        Called once for each matrix when an engine loads a model; a set may return its argument.
        Only ``linear`` reads the result, and ``linear`` takes unpacked matrices too.
        """


class ApplyLinear(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ weight.T + bias``; x ``[rows, in]``, weight ``[out, in]``, C-contiguous or packed.

        When ``rows`` is a multiple of the set's ``row_multiple``, a row's bits do not depend on
        the other rows, on their number, or on its place among them.
        """


NUM_SLICES = 7
"""Projections that an adapter may change: q, k, v, o, gate, up, down, in this order."""


@dataclass(frozen=True, slots=True)
class LoraSite:
    """Projections that share one input and are computed together: q, k, v; or o; or gate, up; or
    down."""

    first_slice: int  # of the seven
    in_width: int  # columns of the input
    out_widths: tuple[int, ...]  # side by side in the columns of the output

    @property
    def num_slices(self) -> int:
        """Projections of this site."""
        return len(self.out_widths)


@dataclass(frozen=True, slots=True)
class LoraDirectory:
    """Where each rank row of an adapter lies, for each layout (adapters of one shape share one).

    An adapter is a range of elements of the pool's dtype, cut into pages as its block table row
    lists them: offset ``e`` is element ``e % page_elems`` of page ``row[e // page_elems]``, where
    ``page_elems`` is ``pool.stride(0)``: adapters fill whole pages. A rank row is contiguous and
    lies within one page. Offsets are multiples of 64.
    """

    a_offsets: Tensor  # [num_layouts, num_layers, 7, max_rank] int64, rows of A [rank, in]
    b_offsets: Tensor  # likewise, rows of B transposed [rank, out]; past the rank: unspecified
    ranks: Tensor  # [num_layouts, num_layers, 7] int32; 0 = the slice is the base model's
    scales: Tensor  # [num_layouts, num_layers, 7] fp32, alpha / rank or what stands for it


@dataclass(frozen=True, slots=True)
class LoraBatch:
    """The tokens of a step that use adapters; the same for all layers.

    Group ``g`` has the tokens ``tokens[starts[g]:starts[g] + counts[g]]``, all of one adapter. The
    entries after them, up to ``starts[g + 1]``, repeat some of these tokens, so that each group has
    a multiple of the set's ``row_multiple`` rows. A group whose ``rows`` is 0 is padding: nothing
    is computed for it.

    A tile is (row, layout, first entry, number of entries): at most 16 tokens of a group. One whose
    row is 0 is padding.
    """

    directory: LoraDirectory
    block_table: Tensor  # [num_rows, max_blocks] int32, page ids
    tokens: Tensor  # [num_rows of h] int32
    starts: Tensor  # [num_groups + 1] int32
    counts: Tensor  # [num_groups] int32
    rows: Tensor  # [num_groups] int32, block table rows
    layouts: Tensor  # [num_groups] int32
    tiles: Tensor  # [num_tiles, 4] int32, as ``lora_tiles`` makes them of these groups


class LoraShrink(Protocol):
    def __call__(
        self, x: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch
    ) -> Tensor:
        """``scale * A @ x`` of each token that uses an adapter, at the adapter's own rank.

        x : ``[num_tokens, in_width]``, C-contiguous. pool : as above, in the dtype of ``x``;
            adapters lie in its pages.
        returns : ``[len(lora.tokens), num_slices, max_rank]`` fp32, C-contiguous, one row for each
            entry of ``lora.tokens``; unspecified past a slice's rank and in rows of repeats. In a
            dimension before these there may be partial sums, which the set's ``lora_expand`` adds.

        Sums in fp32. The cost follows the true ranks; a slice of rank 0 costs nothing.
        """


class LoraExpand(Protocol):
    def __call__(
        self, h: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch, out: Tensor
    ) -> None:
        """``out[token] += h @ B`` for the same tokens, slice by slice, in place.

        h : what ``lora_shrink`` returned for this site. out : ``[num_tokens, sum(out_widths)]``,
            C-contiguous. Sums over the rank in fp32; rounded when added. ``h`` may be rounded to
            the pool's dtype first.
        Rows of other tokens, and columns of slices of rank 0, keep their bits.
        """


class SiluMul(Protocol):
    def __call__(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` of ``[rows, 2 * width]`` (gate first), as ``[rows, width]``.

        May overwrite ``gate_up``.
        """


class GeluMul(Protocol):
    def __call__(self, gate_up: Tensor) -> Tensor:
        """``SiluMul`` of ``gate_up`` with the tanh form of GELU (Gemma):
        ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``."""


class CopyPages(Protocol):
    def __call__(self, pool: Tensor, src: Tensor, dst: Tensor) -> None:
        """Copy whole pages ``src[i]`` to ``dst[i]``, every bit, NaN patterns included.

        pool : C-contiguous. src, dst : ``[n]`` int64. ``dst`` has no duplicates and shares no page
            with ``src``.
        """


class ZeroPages(Protocol):
    def __call__(self, pool: Tensor, ids: Tensor) -> None:
        """Set pages ``ids`` (``[n]`` int64) of a C-contiguous pool to zero bits."""


class Sample(Protocol):
    def __call__(
        self,
        logits: Tensor,
        temperatures: Tensor,
        top_ks: Tensor,
        top_ps: Tensor,
        keys: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """One token per row: ``[n]`` int32; -1 for a row that holds NaN or Inf.

        logits : ``[n, vocab]`` fp32, C-contiguous. temperatures, top_ps : ``[n]`` fp32.
        top_ks, positions : ``[n]`` int32. keys : ``[n]`` int64, the bits of a 64-bit key.

        Temperature 0: the largest logit, ties to the lowest id. Else
        ``p = softmax((logits - max) / T)`` in fp32; ``top_k > 0`` keeps the k most probable; then
        ``top_p < 1`` keeps, of those, the fewest most probable whose mass reaches ``top_p`` of
        theirs (at both cuts, ties keep the lowest ids). ``u`` is the top 24 bits of word 0 of
        Philox4x32-10 with counter ``(position, 0, 0, 0)`` and key ``(low, high)`` word, over 2**24.
        The token is the first kept one, in vocabulary order, whose cumulative mass exceeds ``u``
        times the kept mass.
        """


RULED_OUT = -(2.0**100)
"""The logit of a token that must not be sampled: far below any other, and finite, as rows that hold
-Inf are broken ones. At temperatures up to 2**90 its weight is 0."""


@dataclass(frozen=True, slots=True)
class Adjustments:
    """What the logits of some rows go through before they are sampled; ``[m]`` arrays, one entry a
    row. All arrays are C-contiguous.

    ``counts`` says of each token of the vocabulary how often it was generated, times 2, plus 1 if
    it occurs in the prompt; row ``slots[i]`` is row ``i``'s. Bit ``t % 32`` of ``masks[j, t //
    32]`` allows token ``t``.
    """

    rows: Tensor  # [m] int32, rows of the logits
    temperatures: Tensor  # [m] fp32
    min_ps: Tensor  # [m] fp32, 0 to 1; 0 keeps all
    repetitions: Tensor  # [m] fp32, above 0; 1 changes nothing
    presences: Tensor  # [m] fp32
    frequencies: Tensor  # [m] fp32
    slots: Tensor  # [m] int32, rows of counts; read only where one of the three penalties is on
    counts: Tensor  # [num_slots, vocab] int32
    bias_start: Tensor  # [m + 1] int32: row i has biases bias_start[i]:bias_start[i + 1]
    bias_ids: Tensor  # [num_biases] int32, distinct within a row
    biases: Tensor  # [num_biases] fp32; -Inf rules a token out
    mask_rows: Tensor  # [m] int32, rows of masks; -1: all tokens are allowed
    masks: Tensor  # [num_masks, ceil(vocab / 32)] int32


class AdjustLogits(Protocol):
    def __call__(self, logits: Tensor, changes: Adjustments) -> Tensor:
        """The rows ``changes.rows`` of ``logits`` (``[n, vocab]`` fp32, C-contiguous, left as they
        are), changed: ``[m, vocab]`` fp32. In this order, each rounded to fp32:

        1. ``biases`` are added.
        2. Tokens of the prompt or the output: divided by the repetition penalty where positive,
           multiplied by it where negative (Keskar et al., "CTRL", 2019).
        3. Less the frequency penalty times how often the token was generated; less the presence
           penalty if it was.
        4. ``RULED_OUT`` where the mask does not allow the token, or the logit is below that.
        5. At a temperature above 0: ``RULED_OUT`` where ``exp((logit - max) / T)`` is below
           ``min_p``.

        Unspecified in a row that holds NaN or Inf, or of which no token is left.
        """


class ComputeLogProbs(Protocol):
    def __call__(
        self, logits: Tensor, targets: Tensor, top_k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities (natural logarithm, of ``softmax(logits)``) of one token a row, and of
        the ``top_k`` likeliest.

        logits : ``[n, vocab]`` fp32, C-contiguous; not changed. targets : ``[n]`` int32, in
            ``[0, vocab)``. top_k : 0 to ``vocab``.
        returns : ``[n]`` fp32 of the targets; ``[n, top_k]`` int32, the likeliest ids, best first,
            ties to the lowest id; ``[n, top_k]`` fp32, theirs. Sums in fp32 or wider.

        Unspecified (but for being in bounds) in a row that holds NaN or Inf.
        """


@dataclass(frozen=True, slots=True)
class KernelSet:
    """A full set of ops. Frozen: ``dataclasses.replace`` makes a changed one."""

    name: str  # for reports
    row_multiple: int  # rows of ``linear`` stand alone where their number is a multiple of it
    rms_norm: RmsNorm
    qk_norm_rope_store: QkNormRopeStore
    plan: PlanAttention
    paged_decode: PagedAttention
    paged_prefill: PagedAttention
    pack_weight: PackWeight
    linear: ApplyLinear
    lora_shrink: LoraShrink
    lora_expand: LoraExpand
    silu_mul: SiluMul
    gelu_mul: GeluMul
    copy_pages: CopyPages
    zero_pages: ZeroPages
    sample: Sample
    log_probs: ComputeLogProbs
    adjust_logits: AdjustLogits
