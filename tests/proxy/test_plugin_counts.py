"""What is read of a plug-in's counts, and what is said where there are none."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from scalesim.proxy.plugin_counts import PluginWork, read_counts, work_between
from scalesim.proxy.program import served
from scalesim.vllm.scheduler_side import PluginCounts
from tests.proxy.upstream import Upstream

NONE = dict.fromkeys(PluginWork.__slots__, 0.0)


def test_what_was_counted_before_is_not_the_programs() -> None:
    before = NONE | {"prompt_tokens": 500.0, "host_hit_tokens": 7.0, "now": 3.0}
    after = NONE | {"prompt_tokens": 800.0, "host_hit_tokens": 27.0, "saved_blocks": 4.0}
    assert work_between(before, after) == PluginWork(300, 0, 20, 4, 0)


def test_the_names_are_the_plug_ins() -> None:
    assert set(PluginWork.__slots__) <= set(PluginCounts.__slots__)


@pytest.mark.parametrize("after", [None, {}, {"host_chunks": 3.0}, NONE | {"prompt_tokens": 10.0}])
def test_where_nothing_can_be_said(after: Any) -> None:
    """The server is gone, has the host tier only, or was started anew."""
    assert work_between(NONE | {"prompt_tokens": 500.0}, after) is None


@pytest.mark.parametrize("body", ["", "no JSON", "[1, 2]", "3"])
def test_a_server_that_says_something_else(body: str) -> None:
    stats = Route("/scalesim/stats", lambda request: PlainTextResponse(body))
    with served(lambda: Starlette(routes=[stats])) as url:
        assert read_counts(f"{url}/v1") is None


def test_a_server_without_the_plug_in() -> None:
    assert read_counts("http://127.0.0.1:9/v1") is None
    with served(Upstream().app) as url:
        assert read_counts(f"{url}/v1") is None
    with served(Upstream(counts=dict(NONE)).app) as url:
        assert read_counts(f"{url}/any/v2") == NONE
