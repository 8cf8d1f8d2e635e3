"""Sampling: parameters, logits processors, constraints, log-probabilities and embeddings."""
