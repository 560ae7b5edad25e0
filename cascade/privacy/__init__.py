"""What people would not want to leave their device: found, replaced before it is sent, put back.

Example:
    >>> from cascade.privacy import Privacy
    >>> from cascade.privacy.presidio import PresidioPatterns
    >>> privacy = Privacy(PresidioPatterns(), never_leave=frozenset({"CREDIT_CARD"}))
"""

from cascade.privacy.detector import PiiDetector, PiiSpan
from cascade.privacy.guard import Inspection, Privacy
from cascade.privacy.redaction import Redaction, StreamRestorer

__all__ = ["Inspection", "PiiDetector", "PiiSpan", "Privacy", "Redaction", "StreamRestorer"]
