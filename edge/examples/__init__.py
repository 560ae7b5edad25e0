"""What a device may learn from: examples from its own answers, kept on the device alone.

``example`` and ``consent`` say what one is and which may be kept; ``store`` keeps them as a ``row``
each of a ``file``, which ``cipher`` seals and ``retention`` bounds; ``learning`` fills it while the
device answers; ``curate`` chooses from it (``similar``: what is said twice; ``label_noise``: which
labels are doubtful), and ``stats`` counts what came of that.
docs/examples.md shows all of it.
"""

from edge.examples.cipher import AesGcm, Cipher, Clear
from edge.examples.consent import Consent, ConsentEntry
from edge.examples.curate import Curated, CurationRules, LeftOut, Weighted, curate
from edge.examples.example import HELD_OUT_SHARE, Example, Source
from edge.examples.file import DamagedStore, NotAStore
from edge.examples.learning import Learning
from edge.examples.retention import Retention
from edge.examples.store import ExampleStore

__all__ = [
    "HELD_OUT_SHARE",
    "AesGcm",
    "Cipher",
    "Clear",
    "Consent",
    "ConsentEntry",
    "Curated",
    "CurationRules",
    "DamagedStore",
    "Example",
    "ExampleStore",
    "Learning",
    "LeftOut",
    "NotAStore",
    "Retention",
    "Source",
    "Weighted",
    "curate",
]
