"""The privacy of a request: what is found in it, whether it may leave, and in which words.

Only texts are looked into. Numbers of a classifier (tensors) are sent as they are.
"""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass

from cascade.constraints import DETECTOR_FAILED
from cascade.errors import InvalidInput
from cascade.privacy.detector import PiiDetector, PiiSpan, merged
from cascade.privacy.redaction import Redaction
from cascade.request import Request


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in a request.

    Arguments:
        forbidden: kinds that keep it on the device, each once; ``detector_failed`` where it could
            not be looked into.
        request: what may be sent where nothing is forbidden.
        values: what each placeholder in it stands for.
    """

    forbidden: tuple[str, ...]
    request: Request
    values: dict[str, str]


class Privacy:
    """Looks into every request that might leave.

    Arguments:
        detector: finds personal data.
        redact: replace what is found; ``False`` sends it as it is, and ``never_leave`` alone holds.
        never_leave: kinds whose presence keeps a request on the device.
        min_score: findings below it are left alone.

    Raises:
        InvalidInput: ``min_score`` is out of its range.
    """

    def __init__(
        self,
        detector: PiiDetector,
        *,
        redact: bool = True,
        never_leave: frozenset[str] = frozenset(),
        min_score: float = 0.4,
    ) -> None:
        if not 0 <= min_score <= 1:
            raise InvalidInput("min_score", f"{min_score} is not in 0 … 1")
        self._detector = detector
        self._redact = redact
        self._never_leave = never_leave
        self._min_score = min_score
        # New for each process: a placeholder cannot be linked from one to the next.
        self._key = secrets.token_bytes(32)

    def inspect(self, request: Request) -> Inspection:
        """Look into ``request`` as it would be sent. Blocks while the detector works; never raises
        what the detector raises."""
        try:
            return self._inspect(request)
        except Exception:  # whatever a detector raises, nothing it has not read may leave
            return Inspection((DETECTOR_FAILED,), request, {})

    def _inspect(self, request: Request) -> Inspection:
        turns = [turn.content for turn in request.messages]
        words = [*turns, *request.options]
        found = [self._find(text) for text in words]
        # A schema with placeholders in it would ask for another answer: what is found there stays.
        fixed = [text for text in (request.json_schema, request.regex, *request.stop) if text]
        bound = [span for text in fixed for span in self._find(text)]
        kinds = {span.kind: None for spans in found for span in spans}
        forbidden = {kind: None for kind in kinds if kind in self._never_leave}
        forbidden |= {
            span.kind: None for span in bound if self._redact or span.kind in self._never_leave
        }
        if not self._redact:
            return Inspection(tuple(forbidden), request, {})
        redaction = Redaction(self._key, [*words, *fixed])
        redacted = [redaction.redact(text, spans) for text, spans in zip(words, found, strict=True)]
        messages = tuple(
            dataclasses.replace(turn, content=content)
            for turn, content in zip(request.messages, redacted, strict=False)
        )
        sent = dataclasses.replace(
            request, messages=messages, options=tuple(redacted[len(turns) :])
        )
        return Inspection(tuple(forbidden), sent, redaction.values)

    def _find(self, text: str) -> tuple[PiiSpan, ...]:
        return merged(text, self._detector.find(text), self._min_score)
