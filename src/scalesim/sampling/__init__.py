"""What may be asked of a token: parameters, processors of logits, constraints, log-probabilities."""
