"""The disk of an engine, a folder or an object store: its size, where its pages lie, and
the link that copies to and from it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from scalesim.checks import is_url
from scalesim.config import EngineConfig, memory_bytes, parse_bytes
from scalesim.core import Bytes2D
from scalesim.errors import ConfigError
from scalesim.memory.disk.disk_link import DiskLink
from scalesim.memory.disk.slot_files import SlotFiles, slot_bytes
from scalesim.memory.disk.slot_objects import SlotObjects
from scalesim.memory.disk.slot_store import SlotStore
from scalesim.memory.eviction.policies import Policy
from scalesim.memory.links.link import Link

_AUTO_SHARE = 0.8  # of what is free on the disk
_MAX_PAGES = 2**31 - 1


def num_disk_pages(config: EngineConfig, policy: Policy, page_bytes: int, host_pages: int) -> int:
    """The pages of the disk; 0 without one, and under a policy without a host pool. Raises
    ``ConfigError``."""
    if config.disk is None:
        for name in ("disk_memory", "disk_bandwidth"):
            if (given := getattr(config, name)) not in ("auto", None):
                raise ConfigError(
                    f"{name}={given} without disk: give disk, a folder or a URL, or leave it out"
                )
    if config.disk is None or not policy.host:
        return 0
    if not host_pages:
        raise ConfigError(
            f"disk={config.disk!r} with host_memory={config.host_memory}: state goes to the disk "
            "through the host pool; give host_memory, or leave disk out"
        )
    asked = memory_bytes(config.disk_memory, "disk_memory")
    if is_url(config.disk):
        size = page_bytes
        if asked is None:
            raise ConfigError(
                f"disk_memory='auto' with disk={config.disk!r}: what an object store has free is "
                "not known; say how many bytes of it may be used"
            )
    else:
        size = slot_bytes(page_bytes)
        free = _free_bytes(config.disk)
        if asked is None:
            asked = int(_AUTO_SHARE * free)
        elif asked > free:
            raise ConfigError(
                f"disk_memory={config.disk_memory} is {asked} bytes, and disk={config.disk!r} has "
                f"{free} free: give less, or another folder"
            )
    if asked < size:
        raise ConfigError(
            f"disk_memory={config.disk_memory} is {asked} bytes, and a page takes {size} on the "
            "disk: give more, or leave disk out"
        )
    return min(asked // size, _MAX_PAGES)


def store_for(config: EngineConfig, page_bytes: int, num_pages: int) -> SlotStore | None:
    """Where the ``num_pages`` pages of the disk lie; ``None`` for 0. Raises ``ConfigError`` for a
    folder or an object store that cannot be used."""
    if not num_pages:
        return None
    assert config.disk is not None
    if is_url(config.disk):
        return SlotObjects(config.disk, page_bytes, num_pages)
    return SlotFiles(Path(config.disk), page_bytes, num_pages)


def with_store(link: Link, store: SlotStore | None, host: Bytes2D, config: EngineConfig) -> Link:
    """``link``, and around it the link between ``host`` and ``store``; ``link`` itself without a
    store."""
    if store is None:
        return link
    paced = config.disk_bandwidth
    return DiskLink(
        link, store, host, None if paced is None else parse_bytes(paced, "disk_bandwidth")
    )


def _free_bytes(folder: str) -> int:
    """What is free on the disk of ``folder``, which may be missing yet."""
    path = Path(folder)
    while not os.path.exists(path) and path != path.parent:  # false also where it may not be asked
        path = path.parent
    return shutil.disk_usage(path).free
