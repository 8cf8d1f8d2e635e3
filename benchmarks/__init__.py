"""Benchmarks of ScaleSim: ``python -m benchmarks NAME``. Each compares its arms within one run."""
