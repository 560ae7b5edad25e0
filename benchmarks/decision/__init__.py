"""Figures of the decision: ``python -m benchmarks.decision``. One module a group of figures."""
