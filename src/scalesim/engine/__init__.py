"""The engine: what callers call, the thread that drives it, and the loop that it drives."""
