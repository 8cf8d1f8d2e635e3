"""Distances learned from the calls so far."""
