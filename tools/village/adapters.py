"""Trains the voices' adapters: LoRA in PEFT's format, on what each voice says, and judges them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from tools.village.corpus import day
from tools.village.tokens import END
from tools.village.voices import VOICES, Voice

STEPS = 60
CHATS = 3
"""In the batch of a step."""
MOST_TOKENS = 384
HELD_OUT = 1 << 20
"""Chats from this number on are for judging."""
IGNORED = -100


def spoken(tokenizer: Tokenizer, voice: Voice, number: int) -> tuple[list[int], list[int]]:
    """Tokens and labels of a chat in a voice: all that the person says, but no action, is learned
    (``IGNORED`` marks the rest)."""
    draw = random.Random(f"{voice.name} {number}")
    tokens: list[int] = []
    labels: list[int] = []
    messages = day(draw, voice)
    for message in messages:
        head = tokenizer.encode(f"<|{message['role']}|>").ids
        text = tokenizer.encode(message["content"] + END).ids
        says = message["role"] == "assistant" and not message["content"].startswith("{")
        tokens += head + text
        labels += [IGNORED] * len(head) + (text if says else [IGNORED] * len(text))
    start = max(len(tokens) - MOST_TOKENS, 0)
    return tokens[start:], labels[start:]


def spoken_batch(tokenizer: Tokenizer, voice: Voice, step: int) -> tuple[Tensor, Tensor]:
    """``[CHATS, MOST_TOKENS]`` int64 each: tokens, and labels; filled up at the end."""
    rows = [spoken(tokenizer, voice, step * CHATS + index) for index in range(CHATS)]
    tokens = [row + [0] * (MOST_TOKENS - len(row)) for row, _ in rows]
    labels = [row + [IGNORED] * (MOST_TOKENS - len(row)) for _, row in rows]
    return torch.tensor(tokens), torch.tensor(labels)


def train_adapter(model: Path, tokenizer: Tokenizer, voice: Voice, folder: Path) -> None:
    """Train the adapter of a voice, and write it into ``folder`` as PEFT does."""
    torch.manual_seed(0)
    base = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=voice.rank, lora_alpha=2 * voice.rank, target_modules=targets)
    adapted = get_peft_model(base, config)
    weights = [each for each in adapted.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=4e-3, weight_decay=0.0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 4e-3 * min((step + 1) / 5, 1 - step / STEPS)
        tokens, labels = spoken_batch(tokenizer, voice, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = adapted(input_ids=tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    adapted.to(torch.bfloat16).save_pretrained(folder)
    written = json.loads((folder / "adapter_config.json").read_text())
    written["base_model_name_or_path"] = "scalesim/village"
    (folder / "adapter_config.json").write_text(json.dumps(written, indent=2) + "\n")
    (folder / "README.md").unlink(missing_ok=True)
    print(f"{voice.name}: loss {float(loss.detach()):.3f}", flush=True)


@torch.no_grad()
def own_is_best(model: Path, tokenizer: Tokenizer, folder: Path, lines: int = 20) -> float:
    """The share of held-out chats that are likelier under their own voice's adapter than under
    each other one."""
    base = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted: PeftModel | None = None
    for voice in VOICES:
        if adapted is None:
            adapted = PeftModel.from_pretrained(base, folder / voice.name, voice.name)
        else:
            adapted.load_adapter(folder / voice.name, voice.name)
    assert adapted is not None
    right = 0
    for voice in VOICES:
        for number in range(lines):
            tokens, labels = spoken(tokenizer, voice, HELD_OUT + number)
            losses = {}
            for other in VOICES:
                adapted.set_adapter(other.name)
                found = adapted(
                    input_ids=torch.tensor([tokens]), labels=torch.tensor([labels])
                ).loss
                losses[other.name] = float(found)
            right += min(losses, key=losses.__getitem__) == voice.name
    return right / (lines * len(VOICES))
