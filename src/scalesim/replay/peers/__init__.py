"""Policies of others, for comparison: each is an eviction order or a planner in place of ours.

Better than in the systems that they come from are the link, the copies and the host tier, which are
those of our own policies; so a comparison is one of choices alone.
"""
