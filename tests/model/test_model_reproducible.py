"""The runner gives the same bits for a sequence however its work is cut, placed and accompanied."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scalesim_kernels import select

from scalesim.batch import NO_TOKEN
from scalesim.errors import ConfigError
from scalesim.memory.geometry import PageGeometry
from scalesim.model.checkpoint.dummy import dummy_tensors
from scalesim.model.checkpoint.weights import assemble
from scalesim.model.layers.native import NativeModel
from scalesim.model.runner.pool_view import pool_view
from scalesim.sampling.params import SamplingParams

from .conftest import Work

DRAWN = SamplingParams(temperature=1.0)
PROMPT = 100


def prompt(seed: int, length: int = PROMPT) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, 199, length)]


def alone(
    driver: Any, name: str, tokens: list[int], key: int, new: int
) -> tuple[list[int], list[int]]:
    """Generate by itself: tokens and the digest of each step's logits."""
    driver.add(name, len(tokens) + new, params=DRAWN, key=key)
    driver.feed(name, tokens)
    out, digests = [], []
    for _ in range(new):
        out.append(int(driver.output.token_ids[0]))
        digests.append(int(driver.output.digests[0]))
        driver.run(Work(name, [NO_TOKEN]))
    return out, digests


@pytest.mark.parametrize(("chunk", "threads"), [(1, 1), (7, 2), (33, 1)])
def test_alone_equals_chunked_beside_others(
    make_driver: Any, tiny_model: NativeModel, chunk: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    new = 20
    want = {n: alone(make_driver(tiny_model), n, prompt(i), i, new) for i, n in enumerate("abc")}
    driver = make_driver(tiny_model)
    for i, name in enumerate("abc"):
        driver.add(name, PROMPT + new, params=DRAWN, key=i)
    left = {name: prompt(i) for i, name in enumerate("abc")}
    got: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in "abc"}
    late = {"a": 0, "b": 3, "c": 11}  # joins the batch at this step
    step = 0
    while any(len(tokens) < new for tokens, _ in got.values()):
        works = []
        for name in "cab":
            if step >= late[name] and len(got[name][0]) < new:
                part, left[name] = left[name][:chunk], left[name][chunk:]
                works.append(Work(name, part or [NO_TOKEN], sample=not left[name]))
        driver.run(*works)
        for i, w in enumerate(works):
            if w.sample:
                got[w.name][0].append(int(driver.output.token_ids[i]))
                got[w.name][1].append(int(driver.output.digests[i]))
        if step == 12:
            driver.move("b")
        step += 1
    assert got == want


def test_cached_prefix_and_copied_page(make_driver: Any, tiny_model: NativeModel) -> None:
    tokens = prompt(3)
    want, _ = alone(make_driver(tiny_model), "x", tokens, 5, 8)
    driver = make_driver(tiny_model)
    size = driver.geometry.block_size
    driver.add("first", PROMPT, params=DRAWN)
    driver.feed("first", tokens)
    fork = driver.add("fork", PROMPT + 8, shared="first", shared_blocks=1, params=DRAWN, key=5)
    # The fork's second block starts as a copy of the first's, whose valid part it then keeps.
    source, keep = driver.sequences["first"].pages[1], 20
    fork.num_tokens = size + keep
    copies = [(source, fork.pages[1])]
    got = driver.run(Work("fork", tokens[size + keep :]), page_copies=copies)
    while len(got) < 8:
        got += driver.run(Work("fork", [NO_TOKEN]))
    assert got == want


def test_swapping_two_live_pages_changes_the_result(
    make_driver: Any, tiny_model: NativeModel
) -> None:
    """Or every comparison above would be void."""
    driver = make_driver(tiny_model, block_size=16)
    driver.add("x", PROMPT + 1)
    driver.feed("x", prompt(1)[:-1])
    before = driver.pages.copy()
    a, b = driver.sequences["x"].pages[:2]
    driver.feed("x", prompt(1)[-1:])
    clean = int(driver.output.digests[0])
    driver.pages[:] = before
    driver.pages[[a, b]] = before[[b, a]]
    driver.sequences["x"].num_tokens -= 1
    driver.feed("x", prompt(1)[-1:])
    assert int(driver.output.digests[0]) != clean


def test_nan_in_one_sequence_ends_only_that_one(make_driver: Any, tiny_model: NativeModel) -> None:
    want = alone(make_driver(tiny_model), "good", prompt(1), 1, 4)
    driver = make_driver(tiny_model)
    for i, name in enumerate(("good", "bad")):
        driver.add(name, PROMPT + 4, params=DRAWN, key=1 + i)
        driver.feed(name, prompt(1 + i))
        if name == "good":
            tokens, digests = [int(driver.output.token_ids[0])], [int(driver.output.digests[0])]
    driver.pages[driver.sequences["bad"].pages[0]] = 0xFF
    for _ in range(3):
        driver.run(Work("bad", [NO_TOKEN]), Work("good", [NO_TOKEN]))
        assert driver.output.bad.tolist() == [True, False]
        assert int(driver.output.token_ids[0]) == NO_TOKEN
        tokens.append(int(driver.output.token_ids[1]))
        digests.append(int(driver.output.digests[1]))
    assert (tokens, digests) == want


def test_bad_is_seen_without_sampling(make_driver: Any, tiny_model: NativeModel) -> None:
    driver = make_driver(tiny_model)
    driver.add("x", PROMPT)
    driver.run(Work("x", prompt(1)[:50], sample=False))
    assert driver.output.bad.tolist() == [False]
    assert driver.output.token_ids.tolist() == [NO_TOKEN]
    driver.pages[driver.sequences["x"].pages[0]] = 0xFF
    driver.run(Work("x", prompt(1)[50:60], sample=False))
    assert driver.output.bad.tolist() == [True]


def test_fast_mode_agrees_closely(make_driver: Any, tiny_model: NativeModel) -> None:
    results = []
    for reproducible in (True, False):
        driver = make_driver(tiny_model, reproducible=reproducible)
        driver.add("x", PROMPT)
        results.append(driver.feed("x", prompt(2), chunk=33))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_the_specification_runs_the_model_too(make_driver: Any, tiny_model: NativeModel) -> None:
    results = []
    for name in ("cpu", "reference"):
        driver = make_driver(tiny_model, kernels=select(name))
        driver.add("x", 40)
        results.append(driver.feed("x", prompt(2, 40), chunk=15))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(make_driver: Any, tiny_config: Any, dtype: torch.dtype) -> None:
    logits = []
    for kind in (torch.float32, dtype):
        weights = assemble(tiny_config, dummy_tensors(tiny_config, 0, kind).pop)
        driver = make_driver(NativeModel(tiny_config, weights))
        driver.add("x", PROMPT)
        logits.append(driver.feed("x", prompt(2), chunk=33))
    assert (logits[0] - logits[1]).abs().max() < 0.25 * logits[0].std()


def test_an_empty_batch(make_driver: Any, tiny_model: NativeModel) -> None:
    driver = make_driver(tiny_model)
    driver.add("x", PROMPT)
    driver.feed("x", prompt(1))
    empty = np.zeros(0, np.int32)
    batch = driver.last_batch
    sampling = type(batch.sampling)(
        np.zeros(0, np.float32), empty, np.zeros(0, np.float32), np.zeros(0, np.uint64)
    )
    step = driver.runner.launch(
        replace(
            batch, token_ids=empty, positions=empty, query_start=np.zeros(1, np.int32), rows=empty,
            slots=empty, sample=np.zeros(0, np.bool_), sampling=sampling,
        )
    )  # fmt: skip
    assert driver.runner.collect(step).token_ids.shape == (0,)


def test_pages_that_do_not_fit() -> None:
    geometry = PageGeometry.choose(2, 2, 16, 4)
    with pytest.raises(ConfigError, match="pages of 100 bytes; the geometry's"):
        pool_view(np.zeros((4, 100), np.uint8), geometry, torch.float32)
    with pytest.raises(ConfigError, match="has 2 bytes; the geometry 4"):
        pool_view(np.zeros((4, geometry.page_bytes), np.uint8), geometry, torch.float16)
