"""Queues of device work, behind a protocol: streams and events order the work of links and
runners."""
