"""Engine parts over tags instead of a model: real memory and a real link, without torch."""

from __future__ import annotations

from scalesim.config import CallLimits, SchedulerConfig
from scalesim.engine.parts import EngineParts
from scalesim.memory.links.thread_link import ThreadLink
from scalesim.requests.prompt import TextModel
from scalesim.scheduler.scheduler import Scheduler
from scalesim.testing.bed import Bed, Factories
from scalesim.testing.tag_runner import Verify

THREAD_LINK = Factories(
    link=lambda device, host, timeline, seed: ThreadLink(device, host, timeline), watched=False
)


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
    factories: Factories = THREAD_LINK,
) -> EngineParts:
    """Parts for ``Engine`` without a model: pools of ``device_pages`` (and the null page) and
    ``host_pages`` pages, a ``TagRunner`` and a ``ThreadLink``. A sequence may fill the device pool.

    ``block_size`` is the number of tokens per page. ``policy``, ``max_num_seqs`` and
    ``max_open_requests`` are as in an engine's settings, ``verify`` as in ``TagRunner``.
    ``steps_in_flight`` is 1 or 2. Token ids are below ``vocab_size``. ``factories`` replace parts.
    """
    bed = Bed(
        factories,
        pages=device_pages,
        host_pages=host_pages,
        block_size=block_size,
        policy=policy,
        max_num_seqs=max_num_seqs,
        max_blocks=device_pages,
        steps_in_flight=steps_in_flight,
        vocab_size=vocab_size,
        verify=verify,
    )
    max_len = device_pages * block_size
    scheduler = Scheduler(bed.memory, SchedulerConfig(max_num_seqs=max_num_seqs), max_len)
    model = TextModel(vocab_size, frozenset(), model_len=max_len, pool_len=max_len)
    limits = CallLimits(max_open_requests)
    return EngineParts(
        bed.runner,
        bed.memory,
        scheduler,
        bed.link,
        model,
        limits=limits,
        pages=bed.pages,
        kv_identity=lambda: f"tags, {block_size} a page, {vocab_size} tokens",
    )
