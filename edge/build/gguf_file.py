"""The GGUF container: metadata and the bytes of each tensor, without interpreting either.

What the metadata means is in ``architecture.py`` and ``tokenizer.py``; what the bytes mean is in
``blocks.py``. The layout is the GGUF specification's, versions 2 and 3, little-endian
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). The ``gguf`` package reads it too, but
makes several numpy views for every vocabulary entry: seconds, where this takes a fraction of one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from cascade.errors import InvalidInput
from edge.build.blocks import BlockType

Scalar: TypeAlias = int | float | bool | str
Metadata: TypeAlias = Scalar | list[Scalar]
T = TypeVar("T", int, float, bool, str)

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as it lies in the file.

    Arguments:
        shape: rows first (GGUF itself writes the fastest dimension first).
        kind: block type.
        raw: uint8, one row of bytes for each row of the tensor; a view on the mapped file.
    """

    name: str
    shape: tuple[int, ...]
    kind: BlockType
    raw: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class GgufFile:
    """Metadata by key and tensors by name."""

    path: Path
    metadata: Mapping[str, Metadata]
    tensors: Mapping[str, Tensor]

    def value(self, key: str, kind: type[T]) -> T:
        """The metadata under ``key``.

        Raises:
            InvalidInput: it is missing or of another type.
        """
        found = self.metadata.get(key)
        if not isinstance(found, kind):
            raise InvalidInput("gguf", f"{self.path.name} has no {kind.__name__} '{key}'")
        return found

    def values(self, key: str, kind: type[T]) -> list[T]:
        """The array under ``key``; raises ``InvalidInput`` as ``value`` does."""
        found = self.metadata.get(key)
        if not isinstance(found, list):
            raise InvalidInput("gguf", f"{self.path.name} has no array '{key}'")
        items = [item for item in found if isinstance(item, kind)]
        if len(items) != len(found):
            raise InvalidInput(
                "gguf", f"{self.path.name}: '{key}' is not an array of {kind.__name__}"
            )
        return items

    def tensor(self, name: str) -> Tensor:
        """The tensor called ``name``; raises ``InvalidInput`` when there is none."""
        found = self.tensors.get(name)
        if found is None:
            raise InvalidInput("gguf", f"{self.path.name} has no tensor '{name}'")
        return found


def read_gguf(path: Path) -> GgufFile:
    """Read the header of ``path`` and map its tensors.

    Raises:
        InvalidInput: the file is missing, cut short, not a GGUF, of another version, or holds a
            tensor type that has no lossless re-encoding here.
    """
    if not path.is_file():
        raise InvalidInput("gguf", f"no file {path}")
    if path.stat().st_size < len(_MAGIC):
        raise InvalidInput("gguf", f"{path.name} is not a GGUF file")
    data = np.memmap(path, np.uint8, "r")
    try:
        return _parse(path, data)
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise InvalidInput(
            "gguf", f"{path.name} is cut short or damaged; download it again"
        ) from error


def _parse(path: Path, data: npt.NDArray[np.uint8]) -> GgufFile:
    cursor = _Cursor(data.data)
    if cursor.take(4) != _MAGIC:
        raise InvalidInput("gguf", f"{path.name} is not a GGUF file")
    version = cursor.scalar("I")
    if version not in _VERSIONS:
        raise InvalidInput("gguf", f"{path.name} is GGUF version {version}; {_VERSIONS} are read")
    tensor_count, entry_count = int(cursor.scalar("Q")), int(cursor.scalar("Q"))
    metadata: dict[str, Metadata] = {}
    for _ in range(entry_count):
        key = cursor.string()
        metadata[key] = cursor.value(int(cursor.scalar("I")))
    headers = [_TensorHeader.read(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise InvalidInput("gguf", f"{path.name} has no usable 'general.alignment'")
    start = -(-cursor.position // alignment) * alignment
    tensors = {header.name: header.mapped(path, data, start) for header in headers}
    return GgufFile(path, metadata, tensors)


@dataclass(frozen=True, slots=True)
class _TensorHeader:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @classmethod
    def read(cls, cursor: _Cursor) -> _TensorHeader:
        name = cursor.string()
        dimensions = int(cursor.scalar("I"))
        shape = tuple(int(cursor.scalar("Q")) for _ in range(dimensions))[::-1]
        return cls(name, shape, int(cursor.scalar("I")), int(cursor.scalar("Q")))

    def mapped(self, path: Path, data: npt.NDArray[np.uint8], start: int) -> Tensor:
        try:
            kind = BlockType(self.kind)
        except ValueError:
            supported = ", ".join(kind.name for kind in BlockType)
            raise InvalidInput(
                "gguf",
                f"{path.name}: '{self.name}' has ggml type {self.kind}; supported: {supported}",
            ) from None
        columns = self.shape[-1] if self.shape else 1
        if columns % kind.weights:
            raise InvalidInput(
                "gguf", f"{path.name}: the rows of '{self.name}' are not whole {kind.name} blocks"
            )
        rows = math.prod(self.shape[:-1])
        row_bytes = columns // kind.weights * kind.bytes
        first = start + self.offset
        raw = data[first : first + rows * row_bytes]
        if raw.size != rows * row_bytes:
            raise IndexError(self.name)
        return Tensor(self.name, self.shape, kind, raw.reshape(rows, row_bytes))


class _Cursor:
    """Reads the header's values one after the other."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise IndexError(end)
        taken = self._data[self.position : end]
        self.position = end
        return taken.tobytes()

    def scalar(self, code: str) -> int | float | bool:
        (found,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        assert isinstance(found, int | float)
        return found

    def string(self) -> str:
        return self.take(int(self.scalar("Q"))).decode("utf-8")

    def value(self, kind: int) -> Metadata:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise IndexError(kind)
        item, count = int(self.scalar("I")), int(self.scalar("Q"))
        if item == _STRING:
            return [self.string() for _ in range(count)]
        if item not in _SCALARS:
            raise IndexError(item)
        code = f"<{count}{_SCALARS[item]}"
        return list(struct.unpack(code, self.take(struct.calcsize(code))))
