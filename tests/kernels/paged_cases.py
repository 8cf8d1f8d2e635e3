"""The shapes that tests of kernels run; the cases themselves come from the conformance kit."""

from __future__ import annotations

from scalesim_kernels.conformance.paged import PagedCase, PagedShape, garbage, make_case

__all__ = ["SHAPES", "PagedCase", "PagedShape", "garbage", "make_case"]

DECODES = ((1, 1), (2, 1), (15, 1), (16, 1), (17, 1), (63, 1), (64, 1), (65, 1), (200, 1), (641, 1))
PREFILLS = ((1, 1), (130, 1), (7, 7), (64, 64), (65, 65), (70, 7), (130, 66), (333, 200), (129, 2))
SHAPES = [
    PagedShape(1, 1, 16, 16, DECODES),
    PagedShape(2, 2, 64, 16, DECODES, padded_seqs=3, padded_tokens=6),
    PagedShape(4, 2, 32, 32, PREFILLS, padded_tokens=5),
    PagedShape(7, 1, 128, 16, PREFILLS),
    PagedShape(4, 1, 64, 64, PREFILLS),
    PagedShape(3, 3, 16, 32, PREFILLS),
    PagedShape(12, 1, 32, 16, ((5, 1), (100, 1), (40, 33))),
    PagedShape(18, 1, 16, 64, ((5, 1), (100, 1), (40, 33))),
    PagedShape(1, 4, 80, 16, ((90, 90),)),
]
