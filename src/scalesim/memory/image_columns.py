"""An image of memory as columns: arrays and lists that a file can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from scalesim.memory.image import AgentImage, MemoryImage, ReuseImage, SegmentImage
from scalesim.memory.tree.owner import AgentStatistics
from scalesim.memory.tree.segment import TOKEN_BYTES

_SEGMENT = {
    "parent": np.int64, "partial_of": np.int64, "num_content": np.int64, "on_device": np.bool_,
    "on_disk": np.bool_, "reused": np.bool_, "last_use": np.float64, "last_seq": np.int64,
    "block_size": np.int64,
}  # fmt: skip
_AGENT = {"newest_end": np.int64, "last_match": np.int64, "next_seq": np.int64}
_STATISTICS = {
    "calls": np.int64, "last_path_blocks": np.int64, "continued": np.float64,
    "could_continue": np.float64, "fresh_reuse": np.float64,
}  # fmt: skip


def to_columns(image: MemoryImage) -> dict[str, Any]:
    """``image`` as columns."""
    segments, agents = image.segments, image.agents
    return {
        "block_size": image.block_size,
        "now": image.now,
        "tick_s": image.tick_s,
        "move": image.move,
        "reuse": list(image.reuse),
        "segments": _columns(segments, _SEGMENT),
        "tokens": _joined([found.tokens for found in segments]),
        "marks": _joined([found.mark for found in segments]),
        "ids": [agent.id for agent in agents],
        "agents": _columns(agents, _AGENT),
        "statistics": _columns([agent.statistics for agent in agents], _STATISTICS),
        "num_paths": np.array([len(agent.paths) for agent in agents], np.int64),
        "paths": np.array([path for agent in agents for path in agent.paths], np.int64),
    }


def from_columns(columns: Mapping[str, Any]) -> MemoryImage:
    """The image that ``to_columns`` took. Raises ``ValueError`` or ``KeyError`` for columns of
    others; ``IndexError`` where a segment or agent is named that is not there."""
    rate, observed, returns = columns["reuse"]
    image = MemoryImage(
        int(columns["block_size"]),
        float(columns["now"]),
        columns["tick_s"],
        float(columns["move"]),
        ReuseImage(rate, observed, returns),
    )
    segments = columns["segments"]
    count = len(segments["parent"])
    before = {  # what releases before did not write
        "on_disk": np.zeros(count, np.bool_), "block_size": np.full(count, image.block_size)
    }  # fmt: skip
    segments = {**before, **segments}
    rows = _rows(segments, _SEGMENT)
    tokens, marks = _split(columns["tokens"]), _split(columns["marks"])
    for row, of_tokens, mark in zip(rows, tokens, marks, strict=True):
        parent, partial_of, content, *others = row
        segment = SegmentImage(parent, of_tokens, mark, partial_of, content, *others)
        block_bytes = max(1, segment.block_size * TOKEN_BYTES)
        full = len(of_tokens) // block_bytes
        most = full if partial_of < 0 else int(0 < len(of_tokens) < block_bytes)
        is_of_parent = parent < 0 or image.segments[parent].block_size == segment.block_size
        if not (-1 <= parent < len(image.segments) and 0 <= content <= most and is_of_parent):
            raise IndexError(f"segment {len(image.segments)}: {row}")
        image.segments.append(segment)
    statistics = _rows(columns["statistics"], _STATISTICS)
    paths = iter(columns["paths"].reshape(-1, 3).tolist())
    num_paths, ids = columns["num_paths"].tolist(), columns["ids"]
    for id, row, stats, count in zip(
        ids, _rows(columns["agents"], _AGENT), statistics, num_paths, strict=True
    ):
        newest, match, seq = row
        taken = [next(paths) for _ in range(count)]
        own = tuple((end, reuses, call) for end, reuses, call in taken)
        for end in (newest, match, *(end for end, _, _ in own)):
            if not -1 <= end < len(image.segments):
                raise IndexError(f"agent {len(image.agents)} names segment {end}")
        image.agents.append(AgentImage(id, AgentStatistics(*stats), own, newest, match, seq))
    for segment in image.segments:
        if not -1 <= segment.partial_of < len(image.agents):
            raise IndexError(f"a partial block of agent {segment.partial_of}")
    return image


def _columns(rows: Sequence[Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: np.array([getattr(row, name) for row in rows], kind) for name, kind in fields.items()
    }


def _rows(columns: Mapping[str, Any], fields: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return list(zip(*(columns[name].tolist() for name in fields), strict=True))


def _joined(parts: Sequence[bytes]) -> dict[str, Any]:
    lengths = np.array([len(part) for part in parts], np.int64)
    return {"lengths": lengths, "bytes": b"".join(parts)}


def _split(joined: Mapping[str, Any]) -> Iterator[bytes]:
    ends = accumulate(joined["lengths"].tolist(), initial=0)
    return (joined["bytes"][begin:end] for begin, end in pairwise(ends))
