"""``python -m benchmarks.gpu --out DIR``: one command that measures the GPU path on any CUDA
machine."""
