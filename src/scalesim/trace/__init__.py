"""Traces of calls, with their times and shared prefixes: recorded, written and read."""
