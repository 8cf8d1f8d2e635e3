"""Levels 2 and 3: vLLM's ``OffloadingConnector`` with the device's blocks ordered by next use, and
with loads ahead. Chosen by ``kv_connector`` ``"ScaleSimConnector"``.

Nothing here decides: the scheduler's side (``scheduler_side.py``) is told of what vLLM does, and
adds its copies to those of vLLM.
"""

from __future__ import annotations

import logging
from typing import Any

from scalesim.vllm.compat import (
    KVConnectorRole,
    OffloadingConnector,
    OffloadingWorkerMetadata,
    layout_of,
    manager_of,
    policy_of,
)
from scalesim.vllm.host_tier import HostTier
from scalesim.vllm.own_copies import OWN_REQUEST
from scalesim.vllm.scheduler_side import SchedulerSide
from scalesim.vllm.settings import PluginSettings

_log = logging.getLogger(__name__)


class ScaleSimConnector(OffloadingConnector):
    """Hints, the device tier, and loads ahead. ``side`` is there in the scheduler's process only.

    Raises ``ConfigError`` for wrong settings in ``kv_connector_extra_config``.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        settings = PluginSettings.of(extra)
        extra.setdefault("spec_name", "ScaleSimOffloadingSpec")
        extra.setdefault("spec_module_path", "scalesim.vllm.spec")
        extra.setdefault("offload_prompt_only", False)  # a reply is part of the next prompt
        super().__init__(vllm_config, role, kv_cache_config)
        self.side: SchedulerSide | None = None
        if role == KVConnectorRole.SCHEDULER:
            manager, layout = manager_of(self), layout_of(self)
            policy = policy_of(manager)
            tier = policy if isinstance(policy, HostTier) else None
            self.side = SchedulerSide(manager, tier, settings, layout.groups, layout.num_workers)

    # -- the scheduler's side --------------------------------------------------------------------

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        super().bind_gpu_block_pool(gpu_block_pool)
        if self.side is None:
            return
        layout = layout_of(self)
        if not gpu_block_pool.enable_caching:  # nothing on the device is found again
            why = "prefix caching is off; --enable-prefix-caching switches it on"
        elif not layout.has_plain_keys:
            why = f"{layout}; give all cache groups one block size, and blocks_per_chunk=1"
        else:
            self.side.bind(gpu_block_pool)
            return
        self.side = None
        _log.warning("ScaleSim leaves the device's order to vLLM, where %s", why)

    def on_new_request(self, request: Any) -> None:
        super().on_new_request(request)
        if self.side is not None:
            self.side.begin(request)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        if self.side is not None and self.side.waits_for_load(request):
            return None, False  # ask again in the next step
        on_host, later = super().get_num_new_matched_tokens(request, num_computed_tokens)
        if self.side is not None:
            self.side.matched(request, num_computed_tokens, on_host)
        return on_host, later

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        if self.side is not None:
            self.side.admitted(request)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        meta = super().build_connector_meta(scheduler_output)
        if self.side is not None:
            self.side.after_schedule(meta)
        return meta

    def update_connector_output(self, connector_output: Any) -> None:
        meta = connector_output.kv_connector_worker_meta
        if self.side is not None and isinstance(meta, OffloadingWorkerMetadata):
            self.side.completed(meta.completed_jobs)
        super().update_connector_output(connector_output)

    def has_pending_push_work(self) -> bool:
        own = self.side is not None and self.side.has_work()
        return own or super().has_pending_push_work()

    def request_finished(self, request: Any, block_ids: list[int]) -> Any:
        if self.side is not None:
            self.side.end(request)
        return super().request_finished(request, block_ids)

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> Any:
        if self.side is not None:
            self.side.end(request)
        return super().request_finished_all_groups(request, block_ids)

    def reset_cache(self) -> bool | None:
        if self.side is not None:
            self.side.reset()
        done: bool | None = super().reset_cache()
        return done

    # -- the worker's side -----------------------------------------------------------------------

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str], set[str]]:
        sent, received = super().get_finished(finished_req_ids)
        # the loads of no request are nobody's to wait for
        return sent, {name for name in received if not name.startswith(OWN_REQUEST)}
