"""The disk tier and snapshots through S3's own protocol: s3fs, and moto's server in this process.

``nox -s stores``; the same rules are tested on fsspec's store in memory by ``test_disk.py`` and
``tests/snapshot/test_objects.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from scalesim.engine.engine import Engine
from scalesim.errors import AdapterError, SnapshotError
from scalesim.snapshot.objects import Objects
from tests.engine.test_adapters import folders
from tests.engine.test_disk import engine_above, play
from tests.engine.world import tiny_engine
from tests.snapshot.village import Village, parts

pytestmark = pytest.mark.store


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server with the bucket ``bucket``, which the environment names as S3's endpoint."""
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    running = moto.ThreadedMotoServer(port=0)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # clients of a server before
    s3fs.S3FileSystem().makedirs("bucket", exist_ok=True)  # a server gives back what one before had
    yield running
    running.stop()


@pytest.mark.parametrize("policy", ["deadline", "lru-swap"])
def test_the_disk_tier_gives_the_texts_of_unlimited_memory(policy: str, server: Any) -> None:
    with engine_above("s3://bucket/state", policy=policy) as engine:
        play(engine)
        assert engine.stats.spilled_bytes and (policy == "deadline" or engine.stats.unspilled_bytes)
    assert Objects("s3://bucket/state").names() == []


def test_adapters_in_a_bucket(server: Any) -> None:
    client = pytest.importorskip("s3fs").S3FileSystem()
    for path in folders()[0].iterdir():
        client.pipe_file(f"bucket/adapters/0/{path.name}", path.read_bytes())
    with tiny_engine() as engine:
        known = [engine.adapters.add("near", folders()[0]),
                 engine.adapters.add("far", "s3://bucket/adapters/0")]  # fmt: skip
        assert known[0].info.digest == known[1].info.digest
        with pytest.raises(AdapterError, match="json is missing"):
            engine.adapters.add("none", "s3://bucket/adapters/1")


def test_a_file_of_many_parts(server: Any) -> None:
    """Larger than what s3fs sends at once, read across its parts; and one that is given up."""
    store, rng = Objects("s3://bucket/pages"), np.random.default_rng(0)
    content = rng.integers(0, 256, (7, 17 << 20), np.uint8)
    file = store.create("whole")
    for piece in content:
        file.write(piece.data)
    assert store.names() == []
    file.finish()
    assert store.names() == ["whole"]
    found, size = store.open("whole"), 3 << 20
    for offset in range(0, content.size, size):
        assert found.read(offset, size) == content.reshape(-1)[offset : offset + size].tobytes()
    half = store.create("half")
    half.write(content[0].data)
    half.abandon()
    assert store.names() == ["whole"]


def test_snapshots_in_a_store_that_is_gone_for_a_while(server: Any) -> None:
    """The older generation stays, the engine goes on, and its next snapshot is whole."""
    url, village = "s3://bucket/a/world", Village(agents=6, keeps=True)
    roomy = partial(parts, device_pages=400)
    with Engine(roomy()) as engine:
        village.play(engine, 2)
        engine.snapshot(url, data=village.data())
        said = village.play(engine)
        port = server.get_host_and_port()[1]
        server.stop()
        with pytest.raises(SnapshotError, match="s3://bucket/a/world cannot be"):
            engine.snapshot(url, data=village.data())
        with pytest.raises(SnapshotError, match="cannot be read"):
            Engine.restore(url, roomy())
        back = type(server)(port=port)
        back.start()
        with Engine.restore(url, roomy()) as other:
            assert other.restored is not None and other.restored.num_missing == 0
            older = Village.of(other.restored.data)
            older.check_values(other)
            assert older.play(other) == said
        taken = engine.snapshot(url, data=village.data())
        assert taken.generation == 2 and 0 < taken.num_new_pages < taken.num_pages
    with Engine.restore(url, roomy()) as other:
        assert other.restored is not None and other.restored.num_missing == 0
        assert Village.of(other.restored.data).check_values(other) == 6
    back.stop()
