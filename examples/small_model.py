"""A model to try the examples with, in seconds and without a download: random weights over bytes.

What it says is noise; what memory does is real. Give an example a model's folder or its id on the
hub for texts that mean something.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.dummy import write_dummy_model
from scalesim.model.layers.rope import RopeConfig
from scalesim.model.text.chat import CHATML

SHAPE = ModelConfig(
    architecture="Qwen2ForCausalLM",
    vocab_size=272,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position=32768,
    rms_eps=1e-6,
    rope=RopeConfig(),
    qkv_bias=True,
    eos_token_ids=(258, *range(216, 240)),  # any of these ends an answer, so most are short
)


def write_small_model(folder: Path) -> Path:
    """Write the model into ``folder``, with a tokenizer and ChatML's template."""
    write_dummy_model(folder, SHAPE)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "tokenizer_class": "Qwen2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder
