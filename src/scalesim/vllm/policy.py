"""Level 1: vLLM's host tier by next use. Chosen by ``eviction_policy`` ``"NextUseCachePolicy"`` and
``cache_policy_module_path`` ``"scalesim.vllm.policy"`` in ``kv_connector_extra_config``."""

from __future__ import annotations

from scalesim.vllm.compat import CachePolicy
from scalesim.vllm.host_tier import HostTier


class NextUseCachePolicy(HostTier, CachePolicy):
    """``HostTier`` as a ``CachePolicy`` of vLLM."""
