"""Placeholders in the place of findings, and back, also in a text that arrives in pieces.

A placeholder is ``<KIND_xxxx>``: the same value has the same one for as long as its ``key`` lives,
so that a conversation stays coherent; it says nothing about the value without the key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cascade.errors import InvalidInput
from cascade.privacy.detector import PiiSpan

_KIND = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_LENGTHS: Final = (4, 8, 16, 32)


@dataclass(slots=True)
class Redaction:
    """The placeholders of one request.

    Arguments:
        key: secret bytes.
        taken: texts in which no placeholder may occur by itself: all that is going to be redacted.
    """

    key: bytes
    taken: Iterable[str] = ()
    values: dict[str, str] = field(default_factory=dict)
    """What each placeholder stands for."""

    def __post_init__(self) -> None:
        self._taken = "\n".join(self.taken)
        self._names: dict[tuple[str, str], str] = {}

    _taken: str = field(init=False, repr=False)
    _names: dict[tuple[str, str], str] = field(init=False, repr=False)

    def redact(self, text: str, spans: Sequence[PiiSpan]) -> str:
        """``text`` with a placeholder in the place of each span.

        Arguments:
            spans: left to right, without overlaps.

        Raises:
            InvalidInput: a span's kind cannot be part of a placeholder.
        """
        pieces: list[str] = []
        done = 0
        for span in spans:
            pieces += [text[done : span.start], self._placeholder(span, text)]
            done = span.end
        return "".join([*pieces, text[done:]])

    def restore(self, text: str) -> str:
        """``text`` with the values in the place of their placeholders."""
        restorer = StreamRestorer(self.values)
        return restorer.feed(text) + restorer.end()

    def _placeholder(self, span: PiiSpan, text: str) -> str:
        value = text[span.start : span.end]
        known = self._names.get((span.kind, value))
        if known is not None:
            return known
        if not _KIND.fullmatch(span.kind):
            raise InvalidInput("pii.kind", f"{span.kind!r} is not of A-Z, 0-9 and _")
        digest = hmac.new(self.key, f"{span.kind}\0{value}".encode(), hashlib.sha256).digest()
        letters = base64.b32encode(digest).decode().lower().rstrip("=")
        for length in _LENGTHS:
            name = f"<{span.kind}_{letters[:length]}>"
            if name not in self.values and name not in self._taken:
                self._names[(span.kind, value)] = name
                self.values[name] = value
                return name
        raise InvalidInput("pii", "no placeholder is free for a finding")


class StreamRestorer:
    """Puts values back into a text that arrives in pieces: what may be the beginning of a
    placeholder is held back until it is one, or is not.

    Arguments:
        values: what each placeholder stands for. A placeholder begins with ``<``, ends with ``>``
            and has neither in between.
    """

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values
        self._longest = max(map(len, values), default=0)
        self._held = ""

    def feed(self, text: str) -> str:
        """More of the text; what of it is known by now."""
        text = self._held + text
        out: list[str] = []
        while (start := text.find("<")) >= 0:
            out.append(text[:start])
            text = text[start:]
            end = text.find(">")
            name = text[: end + 1]
            if end >= 0 and name in self._values:
                out.append(self._values[name])
                text = text[end + 1 :]
            elif end < 0 and self._may_become(text):
                break
            else:
                out.append("<")
                text = text[1:]
        else:
            out.append(text)
            text = ""
        self._held = text
        return "".join(out)

    def end(self) -> str:
        """The text has ended; what was held back."""
        held, self._held = self._held, ""
        return held

    def _may_become(self, text: str) -> bool:
        return len(text) < self._longest and any(name.startswith(text) for name in self._values)
