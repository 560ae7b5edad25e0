"""Schemas and expressions are read once, the same everywhere, or refused with the reason."""

from __future__ import annotations

import pytest

from cascade.errors import InvalidInput
from cascade.request import Message, Request
from cascade.structured import check_json_schema, check_regex, grammar


@pytest.mark.parametrize(
    "pattern",
    [
        r"[0-9]{3}-[0-9]{4}",
        r"^(yes|no)$",
        r"\d+ \w*\s?",
        r"a/b\\?\(?i",
        r"[^\d\[\]&-]+",
        r"[]a]|[^]b]",
        r"--||&&",
        "Grüße, 世界 🙂",
        r"(?P<year>\d{4})(?:-\d\d)??",
    ],
)
def test_ordinary_expressions_are_kept(pattern: str) -> None:
    check_regex(pattern)
    assert grammar(None, pattern).startswith("start: /")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("", "is empty"),
        ("a" * 70_000, "at most 65536"),
        ("a\0b", "NUL"),
        ("[a", "cannot be read"),
        ("(a", "cannot be read"),
        ("a**", "cannot be read"),
        (r"\p{L}", "cannot be read"),
        ("(?i)yes", "sets a flag"),
        ("a(?s:.)b", "sets a flag"),
        ("(?-i:a)", "sets a flag"),
        ("a++b", "possessive"),
        ("a{2}+b", "possessive"),
        ("[[a]]", "inside of a set"),
        ("[a&&b]", "inside of a set"),
        ("[a--b]", "inside of a set"),
        ("[a~~b]", "inside of a set"),
    ],
)
def test_what_two_engines_would_read_differently_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as refused:
        check_regex(pattern)
    assert refused.value.field == "regex"


@pytest.mark.parametrize(
    "pattern", [r"a(?=b)", r"(?<!a)b", r"(a)\1", r"\bword\b", r"a$b", r"x^y", r"(?>a)b"]
)
def test_what_no_grammar_can_keep_is_refused_with_the_reason(pattern: str) -> None:
    check_regex(pattern)
    with pytest.raises(InvalidInput, match=r"^regex: cannot be kept: .+") as refused:
        grammar(None, pattern)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("", "is empty"),
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("true", "is not a JSON object"),
        ("[" * 30_000, "is not JSON"),
        ('{"x": "' + "a" * 70_000 + '"}', "at most 65536"),
    ],
)
def test_what_is_no_schema_is_refused(schema: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as refused:
        check_json_schema(schema)
    assert refused.value.field == "json_schema"


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ('{"type": "colour"}', "colour"),
        ('{"not": {"type": "string"}}', "not"),
        ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ('{"$ref": "#/nowhere"}', "nowhere"),
        ('{"type": "string", "pattern": "a(?=b)"}', "look-around"),
    ],
)
def test_a_keyword_that_cannot_be_kept_is_named_not_dropped(schema: str, reason: str) -> None:
    check_json_schema(schema)
    with pytest.raises(InvalidInput, match=rf"^json_schema: cannot be kept: .*{reason}") as refused:
        grammar(schema, None)
    assert "\n" not in str(refused.value)


def test_a_request_asks_for_one_form_of_answer() -> None:
    messages = (Message("user", "hello"),)
    for fields, field in [
        ({"options": ("a", "b"), "regex": "a"}, "regex"),
        ({"options": ("a", "b"), "json_schema": "{}"}, "json_schema"),
        ({"json_schema": "{}", "regex": "a"}, "regex"),
        ({"regex": "a", "stop": ("b",)}, "stop"),
        ({"json_schema": "{}", "stop": ("b",)}, "stop"),
    ]:
        with pytest.raises(InvalidInput, match="cannot be combined") as refused:
            Request(messages, **fields).check()
        assert refused.value.field == field
