"""Strict reading of plain JSON objects: every field known, present, of its type and in its range.

Only the reading lives here; which fields exist is said by the class that is read.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection
from typing import Self

from cascade.errors import InvalidInput


class Fields:
    """The fields of one JSON object, each taken once by name; ``end`` refuses what is left over.

    Arguments:
        value: the parsed JSON value.
        where: how the object is called in messages, e.g. ``"policy"``.

    Raises:
        InvalidInput: ``value`` is not an object. Every method raises it for a field that is missing
            or unusable, named as ``where.field``.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise InvalidInput(where, "must be a JSON object")
        self._left: dict[object, object] = dict(value)
        self._where = where

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """The fields of one JSON object in UTF-8.

        Raises:
            InvalidInput: ``data`` is not JSON, or no object.
        """
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as problem:
            raise InvalidInput(where, f"is not JSON ({problem})") from None
        return cls(value, where)

    def path(self, name: str) -> str:
        """The field's name as messages show it, e.g. ``"policy.threshold"``."""
        return f"{self._where}.{name}"

    def take(self, name: str) -> object:
        """The field as it is, for a reader of its own."""
        if name not in self._left:
            raise InvalidInput(self.path(name), "is missing")
        return self._left.pop(name)

    def given(self, name: str) -> bool:
        """Whether an optional field has a value; a null counts as absent, and is taken."""
        if self._left.get(name) is None:
            self._left.pop(name, None)
            return False
        return True

    def end(self) -> None:
        """Raise ``InvalidInput`` naming the first field that nobody took."""
        for name in self._left:
            raise InvalidInput(f"{self._where}.{name}", "is not a known field; remove it")

    def text(self, name: str) -> str:
        """A string."""
        value = self.take(name)
        if not isinstance(value, str):
            raise InvalidInput(self.path(name), "must be a string")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.take(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidInput(self.path(name), "must be a list of strings")
        return tuple(value)

    def choice(self, name: str, allowed: Collection[str]) -> str:
        """One of ``allowed``."""
        value = self.text(name)
        if value not in allowed:
            raise InvalidInput(
                self.path(name), f"{value!r} is not known; known are {', '.join(allowed)}"
            )
        return value

    def sha256(self, name: str) -> str:
        """A lower-case hex sha256."""
        value = self.text(name)
        if len(value) != 64 or set(value) - set("0123456789abcdef"):
            raise InvalidInput(self.path(name), "must be a lower-case hex sha256")
        return value

    def boolean(self, name: str) -> bool:
        """true or false."""
        value = self.take(name)
        if not isinstance(value, bool):
            raise InvalidInput(self.path(name), "must be true or false")
        return value

    def number(self, name: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number in [low, high]; whole numbers are taken, booleans are not."""
        return _number(self.path(name), self.take(name), low, high)

    def number_or_none(
        self, name: str, low: float = -math.inf, high: float = math.inf
    ) -> float | None:
        """As ``number``, or null."""
        value = self.take(name)
        return None if value is None else _number(self.path(name), value, low, high)

    def numbers(
        self, name: str, low: float = -math.inf, high: float = math.inf
    ) -> tuple[float, ...]:
        """A list of finite numbers in [low, high]."""
        value = self.take(name)
        if not isinstance(value, list):
            raise InvalidInput(self.path(name), "must be a list of numbers")
        return tuple(
            _number(f"{self.path(name)}[{i}]", item, low, high) for i, item in enumerate(value)
        )

    def integer(self, name: str, low: int, high: int) -> int:
        """A whole number in [low, high]; 3.0 is not one."""
        value = self.take(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidInput(self.path(name), f"must be a whole number in {low} … {high}")
        return value


def _number(field: str, value: object, low: float, high: float) -> float:
    # Compared, because a whole number may be too large for a float.
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) <= sys.float_info.max
    ):
        raise InvalidInput(field, "must be a finite number")
    if not low <= value <= high:
        raise InvalidInput(field, f"{value} is not in {low:g} … {high:g}")
    return float(value)
