"""Personal data that has a form, found by Microsoft Presidio's recognisers (extra ``pii``).

Numbers and addresses that can be told by pattern and check digit: mail, phone, payment cards, bank
accounts, network addresses, and national identifiers where asked for. Names, places and what only a
reader understands are *not* found: that takes a language model, which this adapter neither loads
nor downloads. docs/constraints.md has the measured recall, and what else was looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

from cascade.errors import CascadeError, InvalidInput
from cascade.privacy.detector import PiiSpan

if TYPE_CHECKING:
    from presidio_analyzer import EntityRecognizer
    from presidio_analyzer.nlp_engine import NlpArtifacts

KINDS: Final = (
    "EMAIL_ADDRESS",
    "PHONE_NUMBER",
    "CREDIT_CARD",
    "IBAN_CODE",
    "IP_ADDRESS",
    "MAC_ADDRESS",
    "CRYPTO",
    "US_SSN",
    "UK_NINO",
)
_REGIONS: Final = ("US", "GB", "DE", "FR", "IT", "ES", "NL", "IN", "BR", "JP")
# The recognisers look at what a language model says of the text only where there is one.
_NO_LANGUAGE_MODEL: Final = cast("NlpArtifacts", None)
# Presidio leaves these low for a context of words, which needs a language model, to raise.
_SCORES: Final = {"US_SSN": 0.5, "PHONE_NUMBER": 0.5}


class PresidioPatterns:
    """A ``PiiDetector``.

    Arguments:
        kinds: what to look for; some of ``KINDS``.
        regions: countries whose way of writing phone numbers without ``+`` is understood.

    Raises:
        InvalidInput: a kind is unknown.
        CascadeError: presidio-analyzer is not installed.
    """

    def __init__(self, kinds: Sequence[str] = KINDS, *, regions: Sequence[str] = _REGIONS) -> None:
        made = _recognizers(tuple(regions))
        for kind in kinds:
            if kind not in made:
                raise InvalidInput("pii.kinds", f"{kind!r} is not one of {', '.join(made)}")
        self._recognizers = [(kind, made[kind]()) for kind in kinds]

    def find(self, text: str) -> tuple[PiiSpan, ...]:
        """All findings."""
        return tuple(
            PiiSpan(each.start, each.end, kind, max(float(each.score), _SCORES.get(kind, 0.0)))
            for kind, recognizer in self._recognizers
            for each in recognizer.analyze(text, [kind], _NO_LANGUAGE_MODEL) or ()
        )


def _recognizers(regions: tuple[str, ...]) -> dict[str, Callable[[], EntityRecognizer]]:
    try:
        from presidio_analyzer import Pattern, PatternRecognizer
        from presidio_analyzer import predefined_recognizers as known
        from tldextract import TLDExtract
    except ImportError:
        raise CascadeError(
            "finding personal data needs presidio: pip install 'edge-cloud-cascade[pii]'"
        ) from None

    # The list of top-level domains that came with the package: Presidio's own way asks the network.
    domains = TLDExtract(suffix_list_urls=(), cache_dir=None)

    class Email(known.EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return bool(domains(pattern_text.rpartition("@")[2]).suffix)

    return {
        "EMAIL_ADDRESS": Email,
        "PHONE_NUMBER": lambda: known.PhoneRecognizer(supported_regions=regions),
        "CREDIT_CARD": known.CreditCardRecognizer,
        "IBAN_CODE": known.IbanRecognizer,
        "IP_ADDRESS": known.IpRecognizer,
        "MAC_ADDRESS": known.MacAddressRecognizer,
        "CRYPTO": known.CryptoRecognizer,
        "US_SSN": lambda: PatternRecognizer(
            "US_SSN", patterns=[Pattern("US_SSN", _SSN.pattern, _SCORES["US_SSN"])]
        ),
        "UK_NINO": known.UkNinoRecognizer,
    }


# Presidio's scores 0.05 to 0.5 by format, and leaves what was never given out (000, 666, 9xx).
_SSN: Final = re.compile(r"\b(?!000|666|9)\d{3}[- ](?!00)\d{2}[- ](?!0000)\d{4}\b")
