"""The safetensors container, one file or several shards: tensors by name, mapped and not read.

The layout is the format's own (https://huggingface.co/docs/safetensors): the header's length, a
JSON header, the tensors' bytes. It is read here and not by the ``safetensors`` package because that
one gives no numpy view of bfloat16. What a tensor is for is in ``folder_checkpoint.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cascade.errors import InvalidInput

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class FloatTensor:
    """One tensor as it lies in the file.

    Arguments:
        dtype: ``"F32"``, ``"F16"``, ``"BF16"``, or another type, which cannot be read.
        raw: uint8, a view on the mapped file.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    raw: npt.NDArray[np.uint8]

    def values(self) -> npt.NDArray[np.float16 | np.float32]:
        """The numbers, without loss; bfloat16 comes as float32, of which it is the upper half.

        Raises:
            InvalidInput: of a type that is no plain float.
        """
        if self.dtype not in _ITEM_BYTES:
            raise InvalidInput(
                "safetensors",
                f"{self.file}: '{self.name}' is {self.dtype}; supported: {', '.join(_ITEM_BYTES)}",
            )
        if self.dtype == "F32":
            return self.raw.view("<f4").reshape(self.shape)
        if self.dtype == "F16":
            return self.raw.view("<f2").reshape(self.shape)
        upper = self.raw.view("<u2").astype(np.uint32) << np.uint32(16)
        return upper.view(np.float32).reshape(self.shape)


def read_safetensors(folder: Path) -> Mapping[str, FloatTensor]:
    """Tensors by name of the checkpoint in ``folder``.

    Raises:
        InvalidInput: there is none, a shard is missing, or a file is cut short or damaged.
    """
    found: dict[str, FloatTensor] = {}
    for path in _files(folder):
        for tensor in _read(path):
            found[tensor.name] = tensor
    return found


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        if (folder / WHOLE).is_file():
            return [folder / WHOLE]
        raise InvalidInput(
            "safetensors",
            f"{folder} has neither {WHOLE} nor {INDEX}; save the model with "
            "save_pretrained(folder, safe_serialization=True)",
        )
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        damaged = not names or any(not isinstance(name, str) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError):
        damaged = True
    if damaged:
        raise InvalidInput("safetensors", f"{index.name} in {folder} is damaged")
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise InvalidInput("safetensors", f"{folder} lacks the shard {name}; fetch it again")
    return [folder / name for name in names]


def read_bytes(data: bytes, name: str) -> Mapping[str, FloatTensor]:
    """Tensors by name of one file's content; ``name`` is for messages.

    Raises:
        InvalidInput: it is cut short, damaged or no safetensors file at all.
    """
    return {tensor.name: tensor for tensor in _parse(np.frombuffer(data, np.uint8), name)}


def _read(path: Path) -> Iterator[FloatTensor]:
    if not path.stat().st_size:  # nothing that could be mapped
        raise _damaged(path.name)
    return _parse(np.memmap(path, np.uint8, "r"), path.name)


def _parse(data: npt.NDArray[np.uint8], file: str) -> Iterator[FloatTensor]:
    size = len(data)
    if size < _LENGTH_BYTES:
        raise _damaged(file)
    length = int(data[:_LENGTH_BYTES].view("<u8")[0])
    start = _LENGTH_BYTES + length
    if start > size:
        raise _damaged(file)
    try:
        header = json.loads(data[_LENGTH_BYTES:start].tobytes())
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        for name, entry in entries:
            first, end = (int(offset) for offset in entry["data_offsets"])
            shape = tuple(int(dimension) for dimension in entry["shape"])
            dtype = str(entry["dtype"])
            whole = 0 <= first <= end and start + end <= size and min(shape, default=0) >= 0
            items = math.prod(shape) * _ITEM_BYTES.get(dtype, 0)
            if not whole or (dtype in _ITEM_BYTES and items != end - first):
                raise _damaged(file)
            raw = data[start + first : start + end]
            yield FloatTensor(str(name), file, dtype, shape, raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise _damaged(file) from None


def _damaged(file: str) -> InvalidInput:
    return InvalidInput("safetensors", f"{file} is cut short or damaged; fetch it again")
