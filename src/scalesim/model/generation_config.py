"""What a model folder's ``generation_config.json`` says of sampling, as fields of
``SamplingParams``.

The fields that vLLM takes, but ``max_new_tokens``: how long an answer may be is the caller's to
say, who pays for it in memory. ``do_sample`` is not one of them: ask for ``temperature=0``. Its
end-of-sequence ids are read with the model's config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scalesim.model.config import read_json

FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling_defaults(folder: Path) -> dict[str, Any]:
    """Empty where the file is missing. Raises ``WeightsError`` where it is not JSON."""
    path = folder / "generation_config.json"
    raw = read_json(path) if path.exists() else {}
    return {name: raw[name] for name in FIELDS if raw.get(name) is not None}
