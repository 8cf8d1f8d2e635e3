"""Ahead of time: state is loaded before its agent calls, and saved before it is evicted."""
