"""Replay: the engine's own scheduler, memory and distance code on a virtual clock.

Workloads or recorded traces go in, turns a second and bytes moved come out; the runner and the link
are arithmetic. Never imports the engine or a model.
"""
