"""What an update of one plan must look like to the byte, so that a gateway checks it at a glance.

Shapes and bits fix where everything lies. ``update.decode`` reads field by field, and says of each
what is wrong with it; here the fixed bytes are compared, and all scales and all codes are looked at
together. What does not pass is read field by field, so that both take the same updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from cascade.federation.tensors import MAX_VALUE, Floats, Shapes, elements, places, unflatten
from cascade.federation.update import Bits, decode, encoded_size, frame, values

_MOST: Final = int(np.float32(MAX_VALUE).view(np.uint32))
"""As unsigned bits, every float32 of 0 … ``MAX_VALUE`` is at most this; negative ones, infinity and
NaN are more."""
_LOWEST_BYTE: Final = 0x80
"""−128, which is no code of 8 bits."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Updates of one plan.

    Arguments:
        shapes: of the tensors.
        size: in bytes.
        fixed: where which bytes must be.
        scales, codes: where they lie, one tensor after the other; float32 values count as neither.
    """

    shapes: Shapes
    bits: Bits
    size: int
    fixed: tuple[tuple[slice, bytes], ...]
    scales: tuple[slice, ...]
    codes: tuple[slice, ...]

    @classmethod
    def of(cls, shapes: Shapes, bits: Bits) -> Self:
        """For a plan's shapes and bits."""
        fixed: list[tuple[slice, bytes]] = []
        scales: list[slice] = []
        codes: list[slice] = []
        at = 0
        for header, rows, columns in frame(shapes, bits):
            fixed.append((slice(at, at + len(header)), header))
            at += len(header)
            scales.append(slice(at, at := at + (0 if bits == 32 else 4 * rows)))
            codes.append(slice(at, at := at + (rows * columns * bits + 7) // 8))
        return cls(
            shapes, bits, encoded_size(shapes, bits), tuple(fixed), tuple(scales), tuple(codes)
        )

    def check(self, data: bytes) -> None:
        """Raise what ``decode`` raises of bytes of any origin.

        Raises:
            InvalidInput: they are no such update; the field is named.
        """
        if not self.sound(data):
            decode(data, self.shapes)

    def decode(self, data: bytes) -> dict[str, Floats]:
        """What ``update.decode`` gives.

        Raises:
            InvalidInput: as ``check``.
        """
        if not self.sound(data):
            return decode(data, self.shapes)
        return unflatten(self.rows([data])[0], self.shapes)

    def rows(self, sent: Sequence[bytes]) -> Floats:
        """What ``decode`` gives of many at once, each flat as ``tensors.flatten`` orders it.

        Arguments:
            sent: bytes that are ``sound``, all of them; nothing is looked at again here.

        Returns:
            Shape ``[len(sent), elements]``.
        """
        raw = np.frombuffer(b"".join(sent), np.uint8).reshape(len(sent), self.size)
        rows = np.empty((len(sent), elements(self.shapes)), np.float32)
        each = zip(places(self.shapes).items(), self.scales, self.codes, strict=True)
        for (name, place), scales, codes in each:
            shape, into = self.shapes[name], rows[:, place]
            values(raw[:, scales], raw[:, codes], shape, self.bits, into)
        return rows

    def sound(self, data: bytes) -> bool:
        """Whether it certainly is one. Of others, ``decode`` still takes what it can read."""
        if len(data) != self.size or any(data[at] != wanted for at, wanted in self.fixed):
            return False
        if self.bits == 32:
            floats = np.frombuffer(b"".join(data[where] for where in self.codes), "<u4")
            return bool((floats & 0x7FFFFFFF).max() <= _MOST)
        scales = np.frombuffer(b"".join(data[where] for where in self.scales), "<u4")
        # A row without a scale must be without codes: rare, and left to `decode`.
        if scales.min() == 0 or scales.max() > _MOST:
            return False
        if self.bits == 8:
            return all(data.find(_LOWEST_BYTE, at.start, at.stop) < 0 for at in self.codes)
        halves = np.frombuffer(b"".join(data[where] for where in self.codes), np.uint8)
        return bool((halves & 15).all() and (halves > 15).all() and self._ends(data))

    def _ends(self, data: bytes) -> bool:
        """Whether the half byte behind an odd number of codes of 4 bits is the one it must be."""
        lasts = (
            data[where.stop - 1] >> 4
            for where, name in zip(self.codes, sorted(self.shapes), strict=True)
            if math.prod(self.shapes[name]) % 2
        )
        return all(last == 8 for last in lasts)
