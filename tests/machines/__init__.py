"""The test machines that only ScaleSim's own tests use: the scheduler's world, what moves it, and
what walks through it. The world of memory and the hostile parts are in ``scalesim.testing``."""
