"""Test machines for an engine, an allocator, a link, a runner or a policy.

``memory_walk`` drives the real memory at random; ``walks`` runs, judges and shrinks such walks;
``bed.Factories`` replaces a part by one's own. ``tag_runner`` verifies every read, ``page_watch``
the order of all accesses; ``contracts`` tests an allocator, a link or a policy alone;
``hostile_link`` does the worst that a link may do.
"""
