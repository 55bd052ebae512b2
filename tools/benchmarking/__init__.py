"""What a training step costs, measured against floors and other loops; see ``tools/benchmark.py``."""
