"""Eviction: which segments leave a tier first, and the policies that decide it."""
