"""Folders for the examples: wherever a page's code names a model or an adapter, there is a tiny
one of that name in the folder it runs in."""

from __future__ import annotations

import ast
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.layers.rope import RopeConfig
from scalesim.model.text.chat import CHATML
from tests.docs.pages import Block
from tests.model.adapter_folders import write_adapter
from tests.model_folders import write_dummy_model

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MODEL = ModelConfig(
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
    eos_token_ids=(258,),
)
TAKES_MODEL = ("Engine", "build_parts", "load_model")
RANKS = (4, 8, 16)


def write_model(folder: Path) -> Path:
    """A Qwen2 of random weights over bytes, with ChatML's tokens and template."""
    write_dummy_model(folder, MODEL, seed=zlib.crc32(folder.name.encode()))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "tokenizer_class": "Qwen2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(CHATML)  # a template of its own: none is assumed
    return folder


def write_folders(root: Path, blocks: Sequence[Block]) -> None:
    """What the code of ``blocks`` names, below ``root``. Relative names only."""
    for block in blocks:
        for kind, name in named_in(ast.parse(block.code)):
            folder = root / name
            if folder.exists() or Path(name).is_absolute():
                continue
            if kind == "model":
                write_model(folder)
            else:
                seed = zlib.crc32(name.encode())
                write_adapter(folder, MODEL, RANKS[seed % len(RANKS)], seed=seed)


def named_in(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """("model" or "adapter", name) for each string that a call takes as one."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        called = call.func.attr if isinstance(call.func, ast.Attribute) else None
        called = call.func.id if isinstance(call.func, ast.Name) else called
        if called in TAKES_MODEL and call.args:
            yield from (("model", name) for name in strings(call.args[0]))
        if called == "add_model" and len(call.args) > 1:  # engine.add_model(name, folder)
            yield from (("model", name) for name in strings(call.args[1]))
        if called == "add" and len(call.args) > 1:  # engine.adapters.add(name, folder)
            yield from (("adapter", name) for name in strings(call.args[1]))
        for keyword in call.keywords:
            if keyword.arg == "adapter":
                yield from (("adapter", name) for name in strings(keyword.value) if "/" in name)


def strings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
