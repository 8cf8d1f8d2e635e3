"""Traces: who called when, with what shared prefixes, recorded and read."""
