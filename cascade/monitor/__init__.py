"""Is the certificate still true? Audits, sequential tests, states and their log: docs/monitor.md.

``detector``, ``sequence``, ``scores`` and ``health`` are pure; ``store`` is the file, ``ledger``
what is written into it, ``opinion`` where labels come from, ``monitor`` what a device holds.
"""

from cascade.monitor.detector import ChangeDetector
from cascade.monitor.health import Health, Label, Limits, State
from cascade.monitor.monitor import Monitor
from cascade.monitor.scores import ScoreAlarm
from cascade.monitor.sequence import RiskSequence
from cascade.monitor.settings import Settings
from cascade.monitor.store import Entry, Kept, Key, MonitorStore

__all__ = [
    "ChangeDetector",
    "Entry",
    "Health",
    "Kept",
    "Key",
    "Label",
    "Limits",
    "Monitor",
    "MonitorStore",
    "RiskSequence",
    "ScoreAlarm",
    "Settings",
    "State",
]
