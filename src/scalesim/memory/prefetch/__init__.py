"""Loads ahead of time: state is on the device before its agent calls."""
