"""Watching a server: its metrics, the dashboard that shows them, and the built-in page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.world import tiny_engine
from tests.server.world import KEY, Running, serving

ROOT = Path(__file__).parents[2]
OTHER_KEY = "another-key-of-the-tests"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), "")


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with tiny_engine(device_pages=40) as engine, serving(engine) as server:
        yield server


@pytest.fixture
def http(running: Running) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=running.url, headers=headers) as made:
        yield made


def call(http: httpx2.Client, agent: str, **fields: Any) -> None:
    body = {"prompt": "x" * 200, "max_tokens": 4, "ignore_eos": True, "agent_id": agent} | fields
    assert http.post("/v1/completions", json=body).status_code == 200


def samples(http: httpx2.Client) -> dict[str, float]:
    """Each series by its name and labels."""
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        f"{sample.name}{json.dumps(sample.labels, sort_keys=True)}": sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


# -- metrics -----------------------------------------------------------------------------------


def test_metrics_count(http: httpx2.Client) -> None:
    before = samples(http)
    for _ in range(2):
        call(http, "ada")
    assert http.post("/v1/completions", json={"prompt": 3}).status_code == 400
    now = samples(http)

    def gained(name: str, **labels: str) -> float:
        series = f"{name}{json.dumps(labels, sort_keys=True)}"
        return now[series] - before.get(series, 0.0)

    route = "/v1/completions"
    assert gained("scalesim_calls_total") == 2
    assert gained("scalesim_generated_tokens_total") == 8
    assert gained("scalesim_hits_total") == 1 and gained("scalesim_lookups_total") == 2
    assert gained("scalesim_cached_tokens_total") >= 192
    assert gained("scalesim_http_requests_total", route=route, status="200") == 2
    assert gained("scalesim_http_requests_total", route=route, status="400") == 1
    assert gained("scalesim_request_seconds_count", route=route) == 3
    assert now['scalesim_tier_bytes{"tier": "device"}'] > 0


def test_streams_are_timed(http: httpx2.Client) -> None:
    before = samples(http)
    call(http, "ada", stream=True, max_tokens=9, n=2)
    now = samples(http)
    for name, count in (("time_to_first_token", 2), ("inter_token", 16)):
        series = f"scalesim_{name}_seconds_count{{}}"
        assert now[series] - before[series] == count


def test_no_series_an_agent(http: httpx2.Client) -> None:
    call(http, "ada")
    before = samples(http)
    for index in range(20):
        call(http, f"agent {index}", next_call_in=3)
        http.get(f"/v1/agents/agent {index}")
        http.get(f"/nowhere/{index}")
    now = samples(http)
    routes = [name for name in now.keys() - before.keys() if "/v1/agents/{name:path}" not in name]
    assert routes == [] and not re.search("agent 1|nowhere|" + KEY, str(now))


def test_the_dashboard_shows_what_there_is(http: httpx2.Client) -> None:
    call(http, "ada")
    there = {name.partition("{")[0] for name in samples(http)}
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    names = {name for expr in asked for name in re.findall(r"scalesim_\w+", expr)}
    assert len(asked) > 15 and names <= there


# -- the page ----------------------------------------------------------------------------------


def look(http: httpx2.Client, **query: Any) -> dict[str, Any]:
    response = http.get("/watch.json", params=query)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_one_endpoint_tells_the_page_all() -> None:
    with tiny_engine(device_pages=40) as engine, serving(engine) as running:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx2.Client(base_url=running.url, headers=headers) as http:
            for name in ("ada", "bob", "cy", "dee"):
                call(http, name, prompt=name * 60, next_call_in=len(name))
            now = look(http, q="e")
    assert (now["count"], now["found"], now["state"], now["model"]) == (4, 1, "ready", "tiny")
    assert [row["name"] for row in now["agents"]] == ["dee"]
    assert len(now["cells"]) == 4 and sum(now["places"].values()) == 4
    assert sum(sum(bar.values()) for bar in [
        {key: value for key, value in bar.items() if key != "name"} for bar in now["distances"]
    ]) == 4  # fmt: skip
    assert [tier["name"] for tier in now["tiers"]] == ["device", "host"]
    assert now["stats"]["calls"] == 4 and now["latency"]["request_p50"] > 0
    assert now["agents"][0]["next"] == 3.0


def test_a_wrong_limit(http: httpx2.Client) -> None:
    for limit in ("0", "x", "-1", "1e3", "501", "9" * 99):
        assert http.get("/watch.json", params={"limit": limit}).status_code == 400
        assert http.get("/v1/agents", params={"limit": limit + "0000"}).status_code == 400


def test_who_watches_sees_the_agents_of_one_key() -> None:
    with tiny_engine() as engine, serving(engine, api_keys=(KEY, OTHER_KEY)) as running:
        for key, name in ((KEY, "ada"), (OTHER_KEY, "bob")):
            headers = {"Authorization": f"Bearer {key}"}
            with httpx2.Client(base_url=running.url, headers=headers) as http:
                call(http, name)
                assert [row["name"] for row in look(http)["agents"]] == [name]
                running.service.looks = type(running.service.looks)()


def test_the_page_is_whole_and_asks_nobody_else(http: httpx2.Client) -> None:
    response = http.get("/")
    text = response.text
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"""(?:src|href)=["'](?!data:)|https?:|//\w""", text)
    assert "innerHTML" not in text and "eval(" not in text
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_a_browser_gives_the_key_as_a_password(running: Running) -> None:
    for path in ("/", "/watch.json"):
        refused = httpx2.get(running.url + path)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert httpx2.get(running.url + path, auth=("me", KEY)).status_code == 200
        assert httpx2.get(running.url + path, auth=("me", "wrong-key")).status_code == 401
        basic = {"Authorization": "Basic %%%"}
        assert httpx2.get(running.url + path, headers=basic).status_code == 401
    other = httpx2.get(running.url + "/v1/models", auth=("me", KEY))
    assert (other.status_code, other.headers["www-authenticate"]) == (401, "Bearer")
    assert httpx2.post(running.url + "/v1/sim/tick", auth=("me", KEY), json={}).status_code == 401


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
def test_the_page_in_a_browser(running: Running, http: httpx2.Client, tmp_path: Path) -> None:
    for name in ("ada <b>x</b>", "bob"):
        call(http, name, next_call_in=2)
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
            "--enable-logging=stderr", "--virtual-time-budget=6000", "--dump-dom",
            running.url.replace("://", f"://me:{KEY}@") + "/",
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    dom = done.stdout
    assert "ada &lt;b&gt;x&lt;/b&gt;" in dom and ">bob<" in dom
    assert '<span id="state">ready</span>' in dom and 'role="status"></span>' in dom
    assert "CONSOLE" not in done.stderr, done.stderr
