"""Profiles of real simulations' calls, from their logs: readers, statistics, and a page.

Used by ``scalesim profile``. Only numbers of a log are kept, no text.
"""
