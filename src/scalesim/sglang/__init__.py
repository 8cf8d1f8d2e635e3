"""A plug-in for SGLang: the eviction policy ``next-use`` for its radix cache, on device and host.

SGLang finds it by its entry point; ``docs/sglang.md`` says how to switch it on, and what it cannot
do. Importing this package loads neither SGLang nor torch.
"""
