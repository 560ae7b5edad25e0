"""What a classifier is asked about: named arrays, such as an image or a window of sensor readings.

A ``Tensor`` is a plain value: it compares, hashes, is pickled and goes over the wire as it is, and
its ``repr`` does not show its content. What a particular model takes is ``edge.classifier_spec``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascade.errors import InvalidInput

DTYPES: Final = (
    "float32",
    "float64",
    "float16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "bool",
)
"""NumPy names of the element types."""

MAX_TENSORS = 16
_MAX_NAME = 256
_MAX_RANK = 8


@dataclass(frozen=True, slots=True)
class Tensor:
    """One dense array.

    Arguments:
        name: the model's input.
        dtype: one of ``DTYPES``.
        shape: axis lengths, each ≥ 1; ``()`` for a single number.
        data: the elements in C order, little-endian.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes = field(repr=False)

    @classmethod
    def of(cls, name: str, value: ArrayLike) -> Self:
        """A copy of ``value``, in its own type: a list of floats is float64, as in NumPy.

        Raises:
            InvalidInput: it is no array of numbers.
        """
        try:
            array = np.asarray(value)
        except ValueError:
            raise InvalidInput(f"tensors.{name}", "its rows differ in length") from None
        if array.dtype.name not in DTYPES:
            raise InvalidInput(
                f"tensors.{name}", f"has the type {array.dtype}; use one of {', '.join(DTYPES)}"
            )
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        return cls(name, array.dtype.name, array.shape, little.tobytes())

    def array(self) -> NDArray[np.generic]:
        """The elements, read-only, of type ``dtype`` and shape ``shape``."""
        flat = np.frombuffer(self.data, np.dtype(self.dtype).newbyteorder("<"))
        return flat.reshape(self.shape)

    def check(self) -> None:
        """Raise ``InvalidInput`` unless the fields fit each other. The elements are not looked at:
        whether NaN is allowed is for the model to say."""
        where = f"tensors.{self.name}"
        if not 1 <= len(self.name) <= _MAX_NAME:
            raise InvalidInput("tensors", f"have a name that is not of 1 to {_MAX_NAME} characters")
        if self.dtype not in DTYPES:
            raise InvalidInput(
                where, f"has the type {self.dtype[:32]!r}; use one of {', '.join(DTYPES)}"
            )
        if len(self.shape) > _MAX_RANK:
            raise InvalidInput(where, f"has {len(self.shape)} axes; at most {_MAX_RANK}")
        if any(length < 1 for length in self.shape):
            raise InvalidInput(where, f"is empty (shape {list(self.shape)}); send one example")
        size = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if len(self.data) != size:
            kind = f"{self.dtype} of shape {list(self.shape)}"
            raise InvalidInput(where, f"has {len(self.data)} bytes; {kind} takes {size}")


def pack(values: Mapping[str, ArrayLike]) -> tuple[Tensor, ...]:
    """Named arrays as a request carries them.

    Raises:
        InvalidInput: one of them is no array of numbers; it is named.
    """
    return tuple(Tensor.of(name, value) for name, value in values.items())


def check_tensors(tensors: Sequence[Tensor]) -> None:
    """Raise ``InvalidInput`` unless there is at least one, names differ, and each is whole."""
    if not tensors:
        raise InvalidInput("tensors", "is empty; give the model's inputs by name")
    if len(tensors) > MAX_TENSORS:
        raise InvalidInput("tensors", f"has {len(tensors)} arrays; at most {MAX_TENSORS}")
    for index, tensor in enumerate(tensors):
        tensor.check()
        if any(tensor.name == other.name for other in tensors[:index]):
            raise InvalidInput("tensors", f"names {tensor.name!r} twice")


def total_bytes(tensors: Sequence[Tensor]) -> int:
    """Size of all elements, in bytes."""
    return sum(len(tensor.data) for tensor in tensors)
