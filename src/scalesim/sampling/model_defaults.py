"""What a model folder's ``generation_config.json`` says of sampling, as fields of
``SamplingParams``.

The fields that vLLM takes, but ``max_new_tokens``: how long an answer may be is the caller's to
say, who pays for it in memory. ``do_sample`` is not one of them: ask for ``temperature=0``. Its
end-of-sequence ids are read with the model's config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scalesim.errors import ConfigError
from scalesim.model.checkpoint.fields import Fields
from scalesim.model.checkpoint.files import read_json_if_there

NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")


def sampling_defaults(folder: Path) -> dict[str, Any]:
    """Empty where the file is missing. Raises ``WeightsError`` where it is not JSON,
    ``ConfigError`` for a value that is no number."""
    name = "generation_config.json"
    fields = Fields(name, read_json_if_there(folder / name), ConfigError)
    found = {name: fields.number(name, None, null=True) for name in NUMBERS}
    found["top_k"] = fields.whole("top_k", None, minimum=-1, null=True)
    return {name: value for name, value in found.items() if value is not None}
