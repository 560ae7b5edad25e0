"""Strict JSON objects: nothing missing, nothing unknown, nothing of a wrong type."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from cascade.errors import InvalidInput
from cascade.strict import Fields

Read = Callable[[Fields], object]


@pytest.mark.parametrize("value", [None, [], "text", 1])
def test_only_objects_have_fields(value: object) -> None:
    with pytest.raises(InvalidInput, match="thing: must be a JSON object"):
        Fields(value, "thing")


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 200_000])
def test_what_is_no_json_is_said_so(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="thing: is not JSON"):
        Fields.from_bytes(data, "thing")


def test_a_field_is_taken_once_and_the_rest_is_refused() -> None:
    fields = Fields({"a": 1, "b": 2}, "thing")
    assert fields.take("a") == 1
    with pytest.raises(InvalidInput, match=r"thing\.b: is not a known field"):
        fields.end()
    with pytest.raises(InvalidInput, match=r"thing\.a: is missing"):
        fields.take("a")


def test_an_object_read_to_the_end_is_fine() -> None:
    fields = Fields({"a": None}, "thing")
    assert fields.number_or_none("a") is None
    fields.end()


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (lambda f: f.text("x"), ["", "a"], [None, 1, ["a"]]),
        (lambda f: f.texts("x"), [[], ["a", "b"]], ["a", [1], None]),
        (lambda f: f.boolean("x"), [True, False], [0, 1, "true", None]),
        (lambda f: f.number("x", 0, 1), [0, 0.5, 1], [True, "1", -0.1, 1.1, math.nan, None]),
        (lambda f: f.number("x"), [-1e300, 7], [math.inf, False, 10**400, -(10**400)]),
        (lambda f: f.number_or_none("x", 0, 1), [None, 1], [2, "1"]),
        (lambda f: f.numbers("x", 0, 1), [[], [0, 1]], [0, [2], [True], ["0"]]),
        (lambda f: f.integer("x", 1, 9), [1, 9], [0, 10, 3.0, True, "3"]),
        (lambda f: f.choice("x", ("a", "b")), ["a"], ["c", 1]),
        (lambda f: f.sha256("x"), ["0f" * 32], ["0F" * 32, "0f", 5]),
    ],
)
def test_each_kind_takes_its_own_and_names_the_field_otherwise(
    read: Read, good: list[object], bad: list[object]
) -> None:
    for value in good:
        read(Fields({"x": value}, "thing"))
    for value in bad:
        with pytest.raises(InvalidInput, match=r"^thing\.x"):
            read(Fields({"x": value}, "thing"))
