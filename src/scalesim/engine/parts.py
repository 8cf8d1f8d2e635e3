"""The parts of an engine: what ``build`` makes of a configuration, and what a test replaces."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from scalesim.batch import Runner
from scalesim.config import CallLimits
from scalesim.engine.kinds import Kinds
from scalesim.memory.audit.auditor import Integrity
from scalesim.memory.disk.slot_store import SlotStore
from scalesim.memory.links.link import Link
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.page_access import PageAccess
from scalesim.requests.adapter_home import PackAdapter, ReadAdapter, RebuildAdapter
from scalesim.requests.added_model import JoinModel
from scalesim.requests.prompt import TextModel
from scalesim.scheduler.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine is made of. ``build.build_parts`` makes them for a model folder; a test or
    a simulation passes others. ``time_s`` is monotonic seconds. ``before_wait`` runs on a
    caller's thread when it leaves the computing to the engine's. ``device`` is where the runner
    computes. ``read_adapter`` reads an adapter's folder; ``None``: no adapters here.
    ``pack_adapter`` packs an adapter's new tensors, ``rebuild_adapter`` takes those of a snapshot;
    ``None``: adapters are not updated here.
    ``join_model`` reads a further model and makes it known to the runner; ``None``: there can be
    none. ``limits``: how many requests may be open. ``integrity`` is ``EngineConfig``'s; tests
    raise.
    ``pages`` reads and writes both pools, for snapshots; ``None``: these are without pages.
    ``store`` is where the pages of the disk tier lie, likewise; ``None``: there is no disk.
    ``kv_identity`` names all that KV depends on beside tokens and adapters; pages of another are
    not restored. ``kinds``: the kinds of state that agents may keep."""

    runner: Runner
    memory: MemoryManager
    scheduler: Scheduler
    link: Link
    model: TextModel
    seed: int = 0
    time_s: Callable[[], float] = time.monotonic
    before_wait: Callable[[], None] = lambda: None
    device: str = "cpu"
    read_adapter: ReadAdapter | None = None
    pack_adapter: PackAdapter | None = None
    rebuild_adapter: RebuildAdapter | None = None
    join_model: JoinModel | None = None
    limits: CallLimits = field(default_factory=CallLimits)
    integrity: Integrity = "raise"
    pages: PageAccess | None = None
    store: SlotStore | None = None
    kv_identity: Callable[[], str] = lambda: ""
    kinds: Kinds = field(default_factory=Kinds)
