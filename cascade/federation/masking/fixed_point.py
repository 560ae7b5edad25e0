"""Numbers as integers modulo 2^bits, so that masks hide them perfectly and sums come out exactly.

A value v, clipped to ±``bound``, becomes the integer v · levels / bound, rounded at random to a
neighbour so that it is right on average; negative ones wrap around. The sum of ``cohort`` such
integers stays below 2^(bits−1) in size because

    cohort · levels ≤ 2^(bits−1) − 1,

which the constructor holds to: the sum modulo 2^bits then *is* the sum. ``choose`` takes the
smallest word that leaves ``levels``: 16 bits hold cohorts of up to 32 at 1,023 levels, in two bytes
a number; 32 bits up to 127 at 2^24 levels; 64 bits more devices than can be masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.federation.tensors import Doubles

WordBits = Literal[16, 32, 64]
Words: TypeAlias = NDArray[np.unsignedinteger]

_WORDS: Final[dict[int, np.dtype[np.unsignedinteger]]] = {
    16: np.dtype("<u2"),
    32: np.dtype("<u4"),
    64: np.dtype("<u8"),
}


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """How one round writes its numbers; the same on all devices and on the server.

    Arguments:
        bits: of a word.
        bound: > 0; values beyond ±bound are clipped to it.
        levels: integers for [0, bound], so that a step is bound / levels; ≥ 1, below 2^52.
        cohort: most devices that are ever summed.

    Raises:
        InvalidInput: a field is out of its range, or ``cohort · levels`` could overflow a word.
    """

    bits: WordBits
    bound: float
    levels: int
    cohort: int

    def __post_init__(self) -> None:
        if self.bits not in _WORDS:
            raise InvalidInput("bits", f"must be one of {', '.join(map(str, _WORDS))}")
        if not 0 < self.bound < math.inf:
            raise InvalidInput("bound", f"{self.bound} is not a positive number")
        if not 1 <= self.levels < 1 << 52:
            raise InvalidInput("levels", f"{self.levels} is not in 1 … 2^52 − 1")
        if self.cohort < 1:
            raise InvalidInput("cohort", f"{self.cohort} is not 1 or more")
        if self.cohort * self.levels > self.top:
            raise InvalidInput(
                "levels",
                f"{self.cohort} devices at {self.levels} levels can overflow {self.bits} bits; "
                f"at most {self.top // self.cohort} levels fit",
            )

    @classmethod
    def choose(cls, cohort: int, bound: float, levels: int = 1023) -> Self:
        """The smallest word for at least ``levels``, with all the levels that then fit.

        Raises:
            InvalidInput: not even 64 bits are enough, or an argument is out of its range.
        """
        for bits in (16, 32, 64):
            fit = min(((1 << (bits - 1)) - 1) // max(cohort, 1), (1 << 52) - 1)
            if fit >= levels:
                return cls(bits, bound, fit, cohort)
        raise InvalidInput("levels", f"{levels} for {cohort} devices do not fit 64 bits")

    @property
    def top(self) -> int:
        """Largest sum that a word can hold: 2^(bits−1) − 1."""
        return (1 << (self.bits - 1)) - 1

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Of the words; its arithmetic is modulo 2^bits."""
        return _WORDS[self.bits]

    @property
    def step(self) -> float:
        """Distance of neighbouring values."""
        return self.bound / self.levels

    def norm_after(self, norm: float, elements: int) -> float:
        """What rounding can make of an L2 norm: the sensitivity of the sum that is revealed.

        Each element moves by less than a step, so the norm grows by less than step · √elements.
        """
        return norm + self.step * math.sqrt(elements)

    def encode(self, values: Doubles, rng: np.random.Generator) -> Words:
        """Words for ``values``, any shape.

        Raises:
            InvalidInput: a value is NaN.
        """
        if np.isnan(values).any():
            raise InvalidInput("values", "hold NaN")
        scaled = np.clip(values / self.bound, -1.0, 1.0) * self.levels
        rounded = np.floor(scaled + rng.random(values.shape)).clip(-self.levels, self.levels)
        return rounded.astype(np.int64).astype(self.dtype)

    def integers(self, words: Words) -> NDArray[np.int64]:
        """The signed integers of words, or of a sum of words."""
        signed = np.dtype(f"<i{self.bits // 8}")
        return words.astype(self.dtype).view(signed).astype(np.int64)

    def decode(self, words: Words) -> Doubles:
        """The values of words, or the sum of values of a sum of words."""
        return self.integers(words).astype(np.float64) * self.step

    def to_bytes(self, words: Words) -> bytes:
        """Words as they travel, bits / 8 bytes each."""
        return words.astype(self.dtype).tobytes()

    def from_bytes(self, data: bytes, elements: int) -> Words:
        """Words that some device sent.

        Raises:
            InvalidInput: not exactly ``elements`` words.
        """
        if len(data) != elements * self.bits // 8:
            raise InvalidInput(
                "masked",
                f"has {len(data)} bytes; {elements} words take {elements * self.bits // 8}",
            )
        return np.frombuffer(data, self.dtype)
