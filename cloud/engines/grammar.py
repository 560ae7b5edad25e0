"""What an answer has to be, as a grammar for llama.cpp: a closed set in its own notation, GBNF; a
JSON Schema or a regular expression in that of llguidance, which is built into it.

llama.cpp's own converter of schemas is not used: it drops keywords that it does not know, and the
answer would then not keep the schema. The model ends its answer by itself, so an option that begins
with another one stays reachable.
"""

from __future__ import annotations

from collections.abc import Iterable

from cascade.errors import InvalidInput
from cascade.structured import grammar

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def options_grammar(options: Iterable[str]) -> str:
    """A grammar that accepts exactly ``options``.

    Raises:
        InvalidInput: an option holds a NUL character, which the notation cannot express.
    """
    return "root ::= " + " | ".join(f'"{_escaped(option)}"' for option in options)


def structured_grammar(json_schema: str | None, regex: str | None) -> str:
    """A grammar that accepts what keeps the one that is given.

    Raises:
        InvalidInput: it cannot be kept; the message says which part of it.
    """
    return "%llguidance {}\n" + grammar(json_schema, regex)


def _escaped(option: str) -> str:
    if "\0" in option:
        raise InvalidInput("options", "contains a NUL character; remove it")
    return "".join(_ESCAPES.get(char) or _plain_or_code(char) for char in option)


def _plain_or_code(char: str) -> str:
    return f"\\x{ord(char):02X}" if ord(char) < 0x20 or ord(char) == 0x7F else char
