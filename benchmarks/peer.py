"""Transformers as the peer, as an expert would run it: length-equal batches, a loop of one's own,
no padding.

A batch's cache stays whole from turn to turn, since the same agents always stand in one batch:
nothing is stacked or split. Only the last position's logits are computed in a prefill.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.dialogues import Dialogues, Played, Rates, Transcript
from scalesim.core import Int32s

CacheKind = Literal["turn", "agent", "static"]
"""``turn``: a DynamicCache that lives for a turn. ``agent``: one that is kept. ``static``: a
StaticCache, kept.
"""


class Peer:
    """A causal LM of transformers with SDPA attention, in float32."""

    def __init__(self, folder: Path) -> None:
        import transformers

        quiet: Any = transformers.utils.logging.disable_progress_bar
        quiet()

        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="sdpa", dtype=torch.float32
        )
        self.model = model.eval()

    def new_cache(self, kind: CacheKind, max_len: int) -> Any:
        from transformers import DynamicCache, StaticCache

        if kind == "static":
            return StaticCache(config=self.model.config, max_cache_len=max_len)
        return DynamicCache(config=self.model.config)

    def greedy(self, tokens: Tensor, cache: Any, num_tokens: int) -> Tensor:
        """``[batch, num_tokens]`` behind ``tokens [batch, n]``, the part of the prompt not in
        ``cache``."""
        outputs = []
        for _ in range(num_tokens):
            logits = self.model(tokens, past_key_values=cache, logits_to_keep=1).logits
            tokens = logits[:, -1].argmax(-1, keepdim=True)
            outputs.append(tokens)
        return torch.cat(outputs, dim=1)

    @torch.inference_mode()
    def play(self, dialogues: Dialogues, batch: int, kind: CacheKind) -> Played:
        transcript = Transcript(dialogues)
        groups = [slice(i, i + batch) for i in range(0, dialogues.num_agents, batch)]
        caches: dict[int, Any] = {}
        held = 0  # tokens in every kept cache: all but the newest token
        turn_s = []
        for turn in range(dialogues.num_turns):
            start = time.perf_counter()
            prompts = transcript.prompts(turn).astype(np.int64)
            for group in groups:
                cache = caches.get(group.start)
                if cache is None:
                    cache = self.new_cache(kind, dialogues.max_len)
                if kind != "turn":
                    caches[group.start] = cache
                fresh = torch.from_numpy(prompts[group, held:])
                outputs = self.greedy(fresh, cache, dialogues.output_len)
                transcript.answer(turn, group, outputs.numpy())
            if kind != "turn":
                held = dialogues.prompt_len(turn) + dialogues.output_len - 1
            turn_s.append(time.perf_counter() - start)
        return Played(turn_s, transcript.outputs())

    @torch.inference_mode()
    def play_generate(self, dialogues: Dialogues, batch: int) -> Played:
        """``generate()`` without a cross-turn cache, for reference."""
        transcript = Transcript(dialogues)
        turn_s = []
        for turn in range(dialogues.num_turns):
            start = time.perf_counter()
            prompts = transcript.prompts(turn).astype(np.int64)
            for first in range(0, dialogues.num_agents, batch):
                group = slice(first, first + batch)
                ids = torch.from_numpy(prompts[group])
                length = dialogues.output_len
                whole = self.model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                    max_new_tokens=length, min_new_tokens=length, use_cache=True,
                )  # fmt: skip
                transcript.answer(turn, group, whole[:, ids.shape[1] :].numpy())
            turn_s.append(time.perf_counter() - start)
        return Played(turn_s, transcript.outputs())

    @torch.inference_mode()
    def rates(self, prefixes: Int32s, batch: int, num_decodes: int) -> Rates:
        """Prefill of all ``prefixes`` in batches; then ``num_decodes`` steps of the last batch."""
        ids = torch.from_numpy(prefixes.astype(np.int64))
        start = time.perf_counter()
        for first in range(0, len(ids), batch):
            cache = self.new_cache("agent", 0)
            some = ids[first : first + batch]
            tokens = self.greedy(some, cache, 1)
        middle = time.perf_counter()
        self.greedy(tokens, cache, num_decodes)
        decode_s = time.perf_counter() - middle
        return Rates(ids.numel() / (middle - start), len(some) * num_decodes / decode_s)

    @torch.inference_mode()
    def logits(self, tokens: Int32s) -> npt.NDArray[np.float32]:
        """``[vocab]`` behind ``tokens [n]``, computed afresh."""
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        logits: npt.NDArray[np.float32] = self.model(ids, logits_to_keep=1).logits[0, -1].numpy()
        return logits
