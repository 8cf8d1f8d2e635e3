"""The long tier of the trust suite: ``python -m tests.long NAME``. Seeded, resumable."""
