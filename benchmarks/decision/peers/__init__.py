"""What others do with the same records: ``python -m benchmarks.decision --only peers``.

``parts`` has the rows and texts of a task, ``ranking`` and ``text_gates`` and ``cascadeflow`` the
scores, ``paired`` the figures and their differences, ``keeping`` the rules that pick a threshold,
and ``table`` makes rows of it all.
"""

from benchmarks.decision.peers.table import rows

__all__ = ["rows"]
