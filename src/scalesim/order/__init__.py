"""The order by next use for caches that are not ours: keys of content, owned by agents.

The order is the engine's: next uses come of ``scalesim.distance``, and leave by the heap that the
engine's eviction has. What is here knows neither pages nor tensors; plug-ins into other engines
hand in the keys of their blocks. Needs no torch.
"""
