"""Replies that may be large, as JSON: written in a tenth of the time that Python's own takes."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.responses import Response


class LargeJson(Response):
    """``content`` as JSON. Make it off the event loop, because it is written at once."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content, inf_nan_mode="null")
