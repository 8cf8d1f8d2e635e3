"""Plain values that all parts share: ids of agents, arrays, fences.

Imports nothing but numpy; every other module may import this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

AgentId: TypeAlias = "str | int"
Int32s: TypeAlias = npt.NDArray[np.int32]
Int64s: TypeAlias = npt.NDArray[np.int64]
UInt64s: TypeAlias = npt.NDArray[np.uint64]
Floats: TypeAlias = npt.NDArray[np.float32]
Bools: TypeAlias = npt.NDArray[np.bool_]
Bytes2D: TypeAlias = npt.NDArray[np.uint8]

FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "timeout", "error"]
Pooling = Literal["last", "mean"]
TierName = Literal["device", "host", "disk"]

MAX_MORE_CALLS = 10**6
"""The most calls that may be said to follow one in its tick."""


@dataclass(frozen=True, slots=True)
class Fence:
    """A point that a queue of device work will reach: its ``seq``-th piece of work is complete."""

    queue: str
    seq: int
