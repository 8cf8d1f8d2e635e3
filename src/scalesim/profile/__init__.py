"""What a real simulation's calls are like, from its log: readers, statistics, and a page.

Called by ``scalesim profile``. Reads logs by path; keeps numbers, never anybody's words.
"""
