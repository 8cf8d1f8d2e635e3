"""Random base models with PEFT adapters on them: the oracle, and the folders that we read."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

VOCAB = 211
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def base_model(family: str, folder: Path) -> Any:
    """A tiny random transformers model, saved to ``folder``."""
    torch.manual_seed(7)
    head_dim = {} if family in ("Qwen2", "Olmo2", "Phi3") else {"head_dim": 16}
    text = "Text" if family == "Gemma3" else ""
    more = {"sliding_window": 20} if family.startswith(("Mistral", "Gemma")) else {}
    more |= {"num_experts": 4, "num_experts_per_tok": 2} if family == "Qwen3Moe" else {}
    config = getattr(transformers, f"{family}{text}Config")(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=104, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        eos_token_id=None, bos_token_id=None, pad_token_id=None, **head_dim, **more,
    )  # fmt: skip
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return model


@dataclass
class Oracle:
    """PEFT on one base; adapters by name, each saved to a folder of its own."""

    base: Any
    folder: Path
    model: Any = None
    folders: dict[str, Path] = field(default_factory=dict)

    def add(self, name: str, *, seed: int = 0, **settings: Any) -> Path:
        """A random adapter with these settings of ``LoraConfig``; the folder it was saved to."""
        config = peft.LoraConfig(**{"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM", **settings})
        if self.model is None:
            self.model = peft.PeftModelForCausalLM(self.base, config, adapter_name=name)
        else:
            self.model.add_adapter(name, config)
        generator = torch.Generator().manual_seed(seed + len(self.folders))
        with torch.no_grad():
            for key, parameter in self.model.named_parameters():
                if "lora_" in key and f".{name}." in key:
                    values = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(values * 0.5 * parameter.shape[1] ** -0.5)
        self.model.eval()
        self.model.save_pretrained(self.folder / "adapters", selected_adapters=[name])
        self.folders[name] = self.folder / "adapters" / name
        return self.folders[name]

    def logits(self, name: str | None, tokens: list[int], start: int | None = None) -> torch.Tensor:
        """``[len(tokens), vocab]``; ``start`` is where an activated adapter begins (as PEFT finds
        it in the prompt, if ``None``)."""
        options: dict[str, Any] = {}
        if name is not None:
            self.model.set_adapter(name)
            if start is not None:
                options["alora_offsets"] = [len(tokens) - start]
        off = nullcontext() if name else self.model.disable_adapter()
        with torch.no_grad(), off:
            result: torch.Tensor = self.model(input_ids=torch.tensor([tokens]), **options).logits[0]
        return result


def make_oracle(family: str, folder: Path) -> Oracle:
    base = base_model(family, folder / "base")
    return Oracle(copy.deepcopy(base), folder)
