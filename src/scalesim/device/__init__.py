"""Queues of device work, behind a seam: what the link and the runner order their work with."""
