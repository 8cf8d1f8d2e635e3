"""The prefix tree: segments, and the agents that own them."""
