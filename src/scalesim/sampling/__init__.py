"""What may be asked of a token: parameters, logits processors, constraints, logprobs."""
