"""The audit of memory: do its records agree? Cheap checks after each step, full checks when idle
and in tests."""
