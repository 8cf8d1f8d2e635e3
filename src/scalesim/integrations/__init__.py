"""Adapters for simulation frameworks, a file each: who calls, and who will call next.

An adapter speaks to anything that has an engine's ``agent``, ``expect`` and ``tick``: a
``scalesim.Engine`` in the same process, or ``scalesim.client``'s of a server. No framework is
imported before it is needed, and none is a dependency. See docs/integrations.md.
"""
