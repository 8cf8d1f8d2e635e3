"""Runners: what computes a batch on a CPU or a GPU."""
