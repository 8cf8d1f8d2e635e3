"""A plug-in for vLLM: eviction and prefetching by invocation distance in vLLM's own caches.

Three levels, each useful alone: ``policy`` orders the host tier, ``connector`` the device tier as
well, and loads ahead for the agents that call next. vLLM finds the plug-in by its entry points;
``docs/vllm.md`` says how to switch it on. Importing this package loads neither vLLM nor torch.
"""
