"""Measurements, one package a claim area: ``python -m benchmarks.edge --json FILE [--quick]``.

Importing this package needs the standard library alone, because the children that drive peers
import it in environments of their own.
"""
