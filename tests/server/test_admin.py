"""Adapters over HTTP: by those with an admin key, and by registered name only."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx2
import pytest

from scalesim.errors import ConfigError
from scalesim.server.config import ServerConfig
from tests.engine.world import SHAPE, tiny_engine
from tests.model.adapter_folders import write_adapter
from tests.server.world import KEY, serving

ADMIN_KEY = "admin-key-of-the-tests"
PATHS = (
    ("GET", "/v1/admin/adapters"),
    ("POST", "/v1/admin/adapters/add"),
    ("POST", "/v1/admin/adapters/remove"),
)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_there_is_no_such_route_unless_asked_for() -> None:
    with tiny_engine() as engine, serving(engine) as running:
        for method, path in PATHS:
            response = httpx2.request(method, running.url + path, headers=bearer(KEY), json={})
            assert response.status_code == 404


def test_adapters_come_and_go(tmp_path: Path) -> None:
    write_adapter(tmp_path / "pirate", SHAPE, 4, seed=1)
    folders = {"pirate": tmp_path / "pirate", "broken": tmp_path / "none"}
    with (
        tiny_engine() as engine,
        serving(engine, admin_keys=(ADMIN_KEY,), adapters=folders) as running,
        httpx2.Client(base_url=running.url, headers=bearer(ADMIN_KEY)) as admin,
    ):
        for method, path in PATHS:
            response = httpx2.request(method, running.url + path, headers=bearer(KEY), json={})
            assert response.status_code == 403
        assert admin.get(PATHS[0][1]).json() == {"registered": ["broken", "pirate"], "adapters": []}
        body = {"prompt": "hi", "max_tokens": 2, "model": "pirate", "agent_id": "ada"}
        assert admin.post("/v1/completions", json=body).status_code == 404
        assert admin.post(PATHS[1][1], json={"name": "pirate"}).json()["added"]
        assert admin.post("/v1/completions", json=body).status_code == 200
        [there] = admin.get(PATHS[0][1]).json()["adapters"]
        assert there["name"] == "pirate" and "path" not in there
        assert admin.post(PATHS[2][1], json={"name": "pirate"}).json()["removed"]
        assert admin.post("/v1/completions", json=body).status_code == 404
        assert admin.post(PATHS[2][1], json={"name": "pirate"}).status_code == 409
        broken = admin.post(PATHS[1][1], json={"name": "broken"})
        assert broken.status_code == 409 and str(tmp_path) not in broken.text


def test_an_adapter_that_is_gone_is_the_servers_fault_and_tells_no_path(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "pirate", SHAPE, 4, seed=1)
    with tiny_engine(policy="lru-recompute", host_pages=0) as engine:
        engine.adapters.add("pirate", folder)
        with serving(engine) as running:
            shutil.rmtree(folder)
            body = {"prompt": "hi", "max_tokens": 2, "model": "pirate"}
            url = f"{running.url}/v1/completions"
            answer = httpx2.post(url, headers=bearer(KEY), json=body)
            assert answer.status_code == 503 and str(tmp_path) not in answer.text
            assert answer.json()["error"]["code"] == "adapter_unusable"
            answer = httpx2.post(url, headers=bearer(KEY), json=body | {"model": "tiny"})
            assert answer.status_code == 200


@pytest.mark.parametrize("name", ["../pirate", "/etc", "pirate/../..", "", None, 7, "x" * 9999])
def test_no_path_comes_over_http(name: object, tmp_path: Path) -> None:
    settings = {"admin_keys": (ADMIN_KEY,), "adapters": {"a": tmp_path}}
    with tiny_engine() as engine, serving(engine, **settings) as running:
        for _, path in PATHS[1:]:
            url, headers = running.url + path, bearer(ADMIN_KEY)
            response = httpx2.post(url, headers=headers, json={"name": name})
            assert response.status_code == 404 and len(response.text) < 700


def test_folders_that_are_none() -> None:
    for wrong in (3, {"a": 3}, {"": "x"}, {3: "x"}):
        with pytest.raises(ConfigError, match="adapters"):
            ServerConfig(adapters=wrong)  # type: ignore[arg-type]
