"""For those who test an engine, an allocator, a link, a runner or a policy.

``memory_walk`` and ``request_walk`` drive real memory and scheduling at random (``walks`` plays,
judges and shrinks them); ``bed.Factories`` puts a part of one's own in. ``tag_runner`` verifies
every read, ``page_watch`` the order of all accesses, ``memory.integrity`` the books, ``progress``
that requests go on; ``schedules`` choose what happens next, ``explore`` tries everything.
"""
