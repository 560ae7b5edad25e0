r"""What a structured answer must look like: a JSON Schema or a regular expression, and the grammar
that both the device and llama.cpp decode by.

The grammar's notation and its parser are llguidance's (extra ``structured``; MIT, 3 MB, no
dependencies, one abi3 wheel a platform). It was chosen over outlines-core and xgrammar: xgrammar
requires torch and transformers; outlines-core compiles a schema into one regular expression and
walks the whole vocabulary for each of its states beforehand, so that recursive schemas are out of
reach; llguidance computes the mask of the next token only, needs a plain ``tokenizer.json``, and is
built into the llama.cpp wheel of the cluster, where the same text is the same constraint.

Regular expressions are those that Python's ``re`` and llguidance read alike: an answer is one that
``re.fullmatch(regex, answer, re.ASCII)`` accepts. ``\d``, ``\w`` and ``\s`` are ASCII, as JSON
Schema has them; look-around, back-references, word boundaries, flags and possessive quantifiers are
refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

from cascade.errors import CascadeError, InvalidInput

MAX_CHARS: Final = 65_536
# One way to write a document, the one that models know best: a grammar with free white space lets a
# small model fill its answer with it.
_LAYOUT: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_FLAGS = re.compile(r"(?<!\\)(?:\\\\)*\(\?[a-zA-Z]*-?[a-zA-Z]*[:)]")
_POSSESSIVE = re.compile(r"(?<!\\)(?:\\\\)*[*+?}]\+")
_PLACE = re.compile(r"^at \d+\(\d+\): |failed to compile JSON schema: ")
_SET_OPERATION = re.compile(r"\[|--|&&|~~|\|\|")


def check_json_schema(text: str) -> None:
    """Raise ``InvalidInput`` unless ``text`` is a JSON object. Which of JSON Schema's keywords can
    be kept is known only to ``grammar``."""
    _check_size("json_schema", text)
    _schema(text)


def check_regex(pattern: str) -> None:
    """Raise ``InvalidInput`` where ``pattern`` is no regular expression, or one that two engines
    would read differently."""
    _check_size("regex", pattern)
    if "\0" in pattern:
        raise InvalidInput("regex", "contains a NUL character; remove it")
    for content in _sets(pattern):
        if _SET_OPERATION.search(content):
            raise InvalidInput(
                "regex", "has [, --, &&, ~~ or || inside of a set; write \\[, \\-, \\&, \\~ or \\|"
            )
    try:
        re.compile(pattern, re.ASCII)
    except (re.error, OverflowError, RecursionError) as problem:
        raise InvalidInput("regex", f"cannot be read ({problem})") from None
    if any(found[0][-1] == ")" or found[0][-2] != "?" for found in _FLAGS.finditer(pattern)):
        raise InvalidInput("regex", "sets a flag; write it out, e.g. [Yy]es for (?i)yes")
    if _POSSESSIVE.search(pattern):
        raise InvalidInput("regex", "has a possessive quantifier; write it without the last +")


def grammar(json_schema: str | None, regex: str | None) -> str:
    """The grammar, in llguidance's dialect of Lark, of exactly one of the two; both checked.

    Raises:
        InvalidInput: a keyword of the schema or a part of the expression cannot be kept, or the
            whole is too large; the message says what.
        CascadeError: llguidance is not installed.
    """
    try:
        from llguidance import LLMatcher, regex_to_lark
    except ImportError:
        raise CascadeError(
            "structured answers need llguidance: pip install 'edge-cloud-cascade[structured]'"
        ) from None
    if regex is not None:
        text, field = f"start: /{regex_to_lark(regex, 'dws')}/", "regex"
    else:
        schema = _schema(json_schema or "") | {"x-guidance": _LAYOUT}
        text, field = f"start: %json {json.dumps(schema)}", "json_schema"
    failed, problems = LLMatcher.validate_grammar_with_warnings(text)
    if failed:
        raise InvalidInput(field, f"cannot be kept: {_first_line(problems[0])}")
    return text


def _check_size(field: str, text: str) -> None:
    if not text:
        raise InvalidInput(field, "is empty")
    if len(text) > MAX_CHARS:
        raise InvalidInput(field, f"has {len(text)} characters; at most {MAX_CHARS} are allowed")


def _schema(text: str) -> dict[str, object]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise InvalidInput("json_schema", f"is not JSON ({problem})") from None
    if not isinstance(schema, dict):
        raise InvalidInput("json_schema", 'is not a JSON object such as {"type": "object"}')
    return schema


def _sets(pattern: str) -> Iterator[str]:
    """What stands between the brackets of each set, without what is escaped there."""
    inside: str | None = None
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if char == "\\":
            position += 2
            continue
        position += 1
        if inside is None:
            if char == "[":
                negated = pattern.startswith("^", position)
                position += negated
                literal = pattern.startswith("]", position)
                position += literal
                inside = ""
        elif char == "]":
            yield inside
            inside = None
        else:
            inside += char


def _first_line(problem: str) -> str:
    """llguidance's message without its picture of the grammar and the places in it."""
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error:")]
    return _PLACE.sub("", (errors or lines)[0])
