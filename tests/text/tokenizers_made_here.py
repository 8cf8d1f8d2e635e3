"""Small tokenizers of every kind that the supported models use, trained on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

TEXT = [
    "The baker opens her shop at six, and by noon the bread is gone.",
    "Ada met Bob at the well; they spoke of rain, wolves and the price of salt.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "猫は静かに窓辺で眠っている。 🙂 👩‍🚀 naïve café",
    "def f(x):\n    return {'a': [x, -1.5e3]}\n",
]
SPECIAL = [
    AddedToken("<|bos|>", special=True),
    AddedToken("<|eos|>", special=True),
    AddedToken("<|im_start|>", special=True),
    AddedToken("<|im_end|>", special=True),
    AddedToken("<tool>", special=False),
    AddedToken("<é→>", special=False),
]
NAMED = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}


def byte_level() -> Tokenizer:
    """In the manner of Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens(SPECIAL)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """In the manner of Llama 2: sentencepiece with bytes for what the vocabulary lacks."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=["<unk>"], show_progress=False)
    trained.train_from_iterator(TEXT[:2], trainer)
    spec = json.loads(trained.to_str())["model"]
    vocab = dict(spec["vocab"])
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    merges = [tuple(merge) for merge in spec["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_tokens(SPECIAL)
    return tokenizer


def metaspace(scheme: str = "always") -> Tokenizer:
    """Sentencepiece's other form: the mark is a part of the tokens, and there are no bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens(SPECIAL)
    return tokenizer


def word_level() -> Tokenizer:
    """Whole words and no decoder at all."""
    words = sorted({word for line in TEXT for word in line.split()})
    vocab = {word: i for i, word in enumerate(["<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_tokens(SPECIAL)
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "metaspace": metaspace,
    "metaspace_never": lambda: metaspace("never"),
    "word_level": word_level,
}
