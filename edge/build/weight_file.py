"""The graph's external data: every weight once, in one file that ONNX Runtime maps.

Large tensors start on a page, so that the mapped bytes are used in place. Two initializers may name
the same bytes under different shapes; that is how embedding and head share one matrix. What the
bytes mean is the graph's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

Array: TypeAlias = npt.NDArray[np.generic]

_PAGE = 4096
_LINE = 64
_LARGE = 16 * _PAGE


class WeightFile:
    """Appends arrays to ``file`` and hands out the initializers that point at them.

    Arguments:
        file: opened for writing, at its start.
        location: the file's name beside the graph.
    """

    def __init__(self, file: BinaryIO, location: str) -> None:
        self._file = file
        self._location = location
        self._tensors: dict[str, TensorProto] = {}

    @property
    def tensors(self) -> Mapping[str, TensorProto]:
        """What was written, by name: other graphs read the same bytes through these."""
        return self._tensors

    def name_rows(self, of: TensorProto, name: str, first: int, rows: int) -> None:
        """Call ``rows`` rows of a written matrix, from ``first`` on, ``name``."""
        whole = {entry.key: entry.value for entry in of.external_data}
        row_bytes = int(whole["length"]) // of.dims[0]
        part = reshaped(of, name, (rows, *of.dims[1:]))
        del part.external_data[:]
        _point(
            part,
            self._location,
            int(whole["offset"]) + first * row_bytes,
            rows * row_bytes,
        )
        self._tensors[name] = part

    def add(self, name: str, array: Array) -> TensorProto:
        """Write ``array`` (little-endian, row-major) and return its initializer."""
        alignment = _PAGE if array.nbytes >= _LARGE else _LINE
        position = self._file.tell()
        offset = -(-position // alignment) * alignment
        self._file.write(b"\0" * (offset - position))
        self._file.write(np.ascontiguousarray(array).data)
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        _point(tensor, self._location, offset, array.nbytes)
        self._tensors[name] = tensor
        return tensor


def reshaped(tensor: TensorProto, name: str, shape: tuple[int, ...]) -> TensorProto:
    """A second initializer over the bytes of ``tensor``, of another shape."""
    alias = TensorProto()
    alias.CopyFrom(tensor)
    alias.name = name
    del alias.dims[:]
    alias.dims.extend(shape)
    return alias


def _point(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Say where in the file the bytes of ``tensor`` are."""
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
