"""Copies of rows by a function of the runtime's type: which bytes it is told to move."""

from __future__ import annotations

import ctypes

import pytest
import torch

from scalesim.device.row_copies import copy_rows, runtime_memcpy


def moved_by_host(to: int, of: int, num_bytes: int, direction: int, stream: int) -> int:
    assert (direction, stream) == (4, 77)
    ctypes.memmove(to, of, num_bytes)
    return 0


def test_rows_are_copied_whole_and_others_are_left() -> None:
    source = torch.arange(60, dtype=torch.uint8).view(10, 6)
    target = torch.zeros((8, 6), dtype=torch.uint8)
    copy_rows(moved_by_host, target, source, [(0, 9, 1), (3, 2, 4)], 77)
    assert torch.equal(target[0], source[9]) and torch.equal(target[3:7], source[2:6])
    assert not target[[1, 2, 7]].any()


def test_a_refused_copy_is_an_error() -> None:
    pages = torch.zeros((4, 6), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="12 bytes: CUDA error 700"):
        copy_rows(lambda *_: 700, pages, pages, [(0, 2, 2)], 0)


@pytest.mark.parametrize("version", [None, "1.0"])
def test_without_the_runtime_there_is_no_such_function(version: str | None) -> None:
    assert runtime_memcpy(version) is None
