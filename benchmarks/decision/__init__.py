"""Figures of the decision: ``python -m benchmarks.decision``."""
