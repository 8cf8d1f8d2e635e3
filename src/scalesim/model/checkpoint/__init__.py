"""Checkpoints: configurations and weights, read and checked."""
