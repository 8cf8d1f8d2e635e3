"""Pools: the pages of each tier, and the memory in which they lie."""
