"""The prefix tree: segments of cached state, and the agents that own them."""
