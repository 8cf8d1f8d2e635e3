"""Bodies of requests, as pydantic models. Unknown fields are ignored, known ones are strict: a
number is no text, and a flag no number. What the engine checks itself is left to it."""
