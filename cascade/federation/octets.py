"""Strict reading of bytes that another machine sent: nothing is taken that is not there, nothing is
allocated before its size is known to be right, and nothing may be left over."""

from __future__ import annotations

from cascade.errors import InvalidInput


class Octets:
    """A message's bytes, each taken once from front to back; ``end`` refuses what is left.

    Integers are unsigned and little-endian.

    Arguments:
        data: the whole message.
        where: how it is called in errors, e.g. ``"update"``. Every method raises ``InvalidInput``,
            naming ``where.field``, for a field that is cut off or out of its range.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._where = where

    def take(self, size: int, name: str) -> bytes:
        """The next ``size`` bytes."""
        left = len(self._data) - self._at
        if size > left:
            raise InvalidInput(self.path(name), f"is cut off: {left} of {size} bytes are there")
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def whole(self, size: int, name: str, low: int, high: int) -> int:
        """An integer of ``size`` bytes in [low, high]."""
        value = int.from_bytes(self.take(size, name), "little")
        if not low <= value <= high:
            raise InvalidInput(self.path(name), f"{value} is not in {low} … {high}")
        return value

    def exactly(self, wanted: bytes, name: str) -> None:
        """Bytes that must be these."""
        if self.take(len(wanted), name) != wanted:
            raise InvalidInput(self.path(name), f"is not {wanted!r}: another kind or version")

    def end(self) -> None:
        """Raise ``InvalidInput`` if bytes are left."""
        left = len(self._data) - self._at
        if left:
            raise InvalidInput(self._where, f"has {left} bytes behind its end")

    def path(self, name: str) -> str:
        """The field's name as errors show it."""
        return f"{self._where}.{name}"
