"""An engine's parts over tags instead of a model: real memory, a real link, no torch."""

from __future__ import annotations

from scalesim.config import CallLimits, SchedulerConfig
from scalesim.engine.parts import EngineParts
from scalesim.memory.eviction.policies import policy_named
from scalesim.memory.links.link import Timeline
from scalesim.memory.links.thread_link import ThreadLink
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.storage import allocate_pages
from scalesim.requests.prompt import TextModel
from scalesim.scheduler.scheduler import Scheduler
from scalesim.testing.tag_runner import TagRunner, Verify
from scalesim.testing.tags import page_bytes_for


def tag_parts(
    *,
    device_pages: int,
    host_pages: int,
    policy: str = "deadline",
    block_size: int = 16,
    max_num_seqs: int = 64,
    steps_in_flight: int = 1,
    verify: Verify = "all",
    vocab_size: int = 512,
    max_open_requests: int = 16384,
) -> EngineParts:
    """Parts for ``Engine`` without a model: pools of ``device_pages`` (and the null page) and
    ``host_pages``, a ``TagRunner``, a ``ThreadLink``. A sequence may fill the device pool.

    ``block_size``: tokens a page. ``policy``, ``max_num_seqs``, ``max_open_requests``: as in an
    engine's settings.
    ``steps_in_flight``: 1 or 2. ``verify``: as in ``TagRunner``. Token ids are below
    ``vocab_size``.
    """
    page_bytes = page_bytes_for(block_size)
    device = allocate_pages(device_pages + 1, page_bytes)
    host = allocate_pages(host_pages, page_bytes)
    timeline = Timeline()
    link = ThreadLink(device, host, timeline)
    max_len = device_pages * block_size
    num_rows = 2 * max_num_seqs + 1
    memory = MemoryManager(
        block_size=block_size,
        page_bytes=page_bytes,
        device_pages=device_pages + 1,
        host_pages=host_pages,
        num_rows=num_rows,
        policy=policy_named(policy),
        link=link,
    )
    runner = TagRunner(
        device,
        block_size,
        max_num_seqs=max_num_seqs,
        max_num_rows=num_rows,
        max_blocks_per_row=device_pages,
        steps_in_flight=steps_in_flight,
        timeline=timeline,
        vocab_size=vocab_size,
        verify=verify,
    )
    config = SchedulerConfig(max_num_seqs=max_num_seqs)
    model = TextModel(vocab_size, frozenset(), model_len=max_len, pool_len=max_len)
    limits = CallLimits(max_open_requests)
    return EngineParts(
        runner, memory, Scheduler(memory, config, max_len), link, model, limits=limits
    )
