"""A model's default sampling parameters, from ``generation_config.json`` in its folder.

The fields are those that vLLM reads, without ``max_new_tokens``: the length of an answer costs the
caller memory, so the caller chooses it. ``do_sample`` is not read: ``temperature=0`` is greedy. The
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
    """The defaults as fields of ``SamplingParams``; empty if there is no file. Raises
    ``WeightsError`` if the file is not JSON, ``ConfigError`` for a value that is no number."""
    name = "generation_config.json"
    fields = Fields(name, read_json_if_there(folder / name), ConfigError)
    found = {name: fields.number(name, None, null=True) for name in NUMBERS}
    found["top_k"] = fields.whole("top_k", None, minimum=-1, null=True)
    return {name: value for name, value in found.items() if value is not None}
