"""A closed set of answers as a GBNF grammar, llama.cpp's notation.

The model ends its answer by itself, so an option that begins with another one stays reachable.
"""

from __future__ import annotations

from collections.abc import Iterable

from cascade.errors import InvalidInput

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def options_grammar(options: Iterable[str]) -> str:
    """A grammar that accepts exactly ``options``.

    Raises:
        InvalidInput: an option holds a NUL character, which the notation cannot express.
    """
    return "root ::= " + " | ".join(f'"{_escaped(option)}"' for option in options)


def _escaped(option: str) -> str:
    if "\0" in option:
        raise InvalidInput("options", "contains a NUL character; remove it")
    return "".join(_ESCAPES.get(char) or _plain_or_code(char) for char in option)


def _plain_or_code(char: str) -> str:
    return f"\\x{ord(char):02X}" if ord(char) < 0x20 or ord(char) == 0x7F else char
