"""An update as bytes: int8 or int4 codes with stochastic rounding and one scale a row, or float32.

Rounding is unbiased: the mean of what many devices send is the mean of what they meant. A *row* is
an index of the shorter axis, which in LoRA is the rank, so that A and B cost the same: both
[inputs, rank] and [rank, outputs] have ``rank`` scales.

    "ECCU" · version u8 · bits u8 · tensors u16 · then by sorted name
    name length u8 · name UTF-8 · axes u8 · each axis u32 · scales f32[rows] · codes, row by row

All little-endian. int4 codes lie two a byte, the earlier one in the low half, biased by 8. The
receiver knows all names and shapes from its own plan and so the size to the byte, and reads nothing
of another size. Each update has one encoding: what could be written in two ways is refused.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.federation.octets import Octets
from cascade.federation.tensors import (
    Floats,
    Shapes,
    Tensors,
    check_shapes,
    check_tensors,
    check_values,
    shapes_of,
)

Bits = Literal[4, 8, 32]

_MAGIC: Final = b"ECCU"
_VERSION: Final = 1
_BITS: Final[dict[int, Bits]] = {4: 4, 8: 8, 32: 32}
_TOP: Final = {4: 7, 8: 127}
_BIAS: Final = 8


def encode(tensors: Tensors, bits: Bits, rng: np.random.Generator) -> bytes:
    """An update as bytes.

    Arguments:
        tensors: finite float32 arrays by name.
        bits: of each element; 32 sends float32 as it is.
        rng: of the rounding. Seed it freshly for each update: rounding errors cancel out over
            devices only if they are independent.

    Raises:
        InvalidInput: a tensor is not finite float32, or has no or too many axes or elements.
    """
    shapes = shapes_of(tensors)
    check_shapes(shapes, "update")
    check_tensors(tensors, shapes)
    parts: list[bytes] = []
    for name, (fixed, _, _) in zip(sorted(tensors), frame(shapes, bits), strict=True):
        parts.append(fixed)
        rows = _rows(tensors[name])
        if bits == 32:
            parts.append(rows.astype("<f4").tobytes())
            continue
        scales, codes = quantise(rows, _TOP[bits], rng)
        parts += [scales.astype("<f4").tobytes(), _pack(codes, bits)]
    return b"".join(parts)


def decode(data: bytes, shapes: Shapes) -> dict[str, Floats]:
    """The tensors of an update that some device sent.

    Arguments:
        data: of any origin.
        shapes: what the lease's plan says; nothing else is taken.

    Raises:
        InvalidInput: the bytes are not exactly one encoding of such an update, or hold a number
            that is not finite; the field is named.
    """
    check_shapes(shapes)
    octets = Octets(data, "update")
    octets.exactly(_MAGIC, "magic")
    octets.exactly(_number(_VERSION, 1), "version")
    bits = _BITS.get(octets.whole(1, "bits", 4, 32))
    if bits is None:
        raise InvalidInput("update.bits", f"must be one of {', '.join(map(str, _BITS))}")
    wanted = encoded_size(shapes, bits)
    if len(data) != wanted:
        raise InvalidInput("update", f"has {len(data)} bytes; this plan's updates have {wanted}")
    octets.whole(2, "tensors", len(shapes), len(shapes))
    tensors = {name: _read(octets, name, shapes[name], bits) for name in sorted(shapes)}
    octets.end()
    return tensors


def encoded_size(shapes: Shapes, bits: Bits) -> int:
    """Exact size in bytes of an update of these shapes: what a lease may announce and check."""
    size = len(_MAGIC) + 4
    for name, shape in shapes.items():
        rows, columns = _row_shape(shape)
        size += 2 + len(name.encode()) + 4 * len(shape)
        size += rows * columns * 4 if bits == 32 else 4 * rows + (rows * columns * bits + 7) // 8
    return size


def frame(shapes: Shapes, bits: Bits) -> list[tuple[bytes, int, int]]:
    """The fixed bytes in front of each tensor's scales and codes, with its rows and columns, in the
    order in which they are written."""
    start = [_MAGIC, _number(_VERSION, 1), _number(bits, 1), _number(len(shapes), 2)]
    framed: list[tuple[bytes, int, int]] = []
    for name in sorted(shapes):
        shape, raw = shapes[name], name.encode()
        fixed = [_number(len(raw), 1), raw, _number(len(shape), 1)]
        fixed += [_number(length, 4) for length in shape]
        rows, columns = _row_shape(shape)
        framed.append((b"".join(start + fixed), rows, columns))
        start = []
    return framed


def values(
    scales: NDArray[np.uint8],
    packed: NDArray[np.uint8],
    shape: tuple[int, ...],
    bits: Bits,
    into: Floats,
) -> None:
    """One tensor of many updates, from scales and codes that are known to be good; float32 has no
    scales.

    Arguments:
        scales, packed: the bytes of each update's, shape ``[updates, bytes]``.
        into: float32, shape ``[updates, elements]``, written flat.
    """
    many, (rows, columns) = len(packed), _row_shape(shape)
    if _turned(shape):
        target = into.reshape(many, columns, rows).transpose(0, 2, 1)
    else:
        target = into.reshape(many, rows, columns)
    if bits == 32:
        target[...] = np.ascontiguousarray(packed).view("<f4").reshape(many, rows, columns)
        return
    if bits == 8:
        codes = np.ascontiguousarray(packed).view(np.int8)
    else:
        halves = np.stack([packed & 15, packed >> 4], axis=2).reshape(many, 2 * packed.shape[1])
        codes = halves[:, : rows * columns].view(np.int8) - np.int8(_BIAS)
    each = np.ascontiguousarray(scales).view("<f4")[:, :, None]
    np.multiply(codes.reshape(many, rows, columns), each, out=target, casting="same_kind")


def quantise(rows: Floats, top: int, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int8]]:
    """Codes in [−top, top] with E[scale · code] = value, and the scale of each row.

    floor(x + u) with u uniform in [0, 1) is x on average (stochastic rounding, as in QSGD, arXiv
    1610.02132, with the maximum in place of the norm).

    Arguments:
        rows: float32, shape ``[rows, columns]``, finite.

    Returns:
        scales, float32, shape ``[rows]``; codes, shape ``[rows, columns]``.
    """
    most = np.abs(rows).max(axis=1).astype(np.float64)
    scales = (most / top).astype(np.float32)
    # Never below most / top: the largest value of a row must have a code.
    low = scales.astype(np.float64) * top < most
    scales[low] = np.nextafter(scales[low], np.float32(np.inf))
    wide = scales.astype(np.float64)[:, None]
    relative = np.divide(rows, wide, out=np.zeros(rows.shape), where=wide > 0)
    codes = np.floor(relative + rng.random(rows.shape))
    return scales, codes.clip(-top, top).astype(np.int8)


def _read(octets: Octets, name: str, shape: tuple[int, ...], bits: Bits) -> Floats:
    raw = name.encode()
    octets.exactly(_number(len(raw), 1) + raw, f"{name}.name")
    octets.whole(1, f"{name}.axes", len(shape), len(shape))
    for length in shape:
        octets.whole(4, f"{name}.shape", length, length)
    rows, columns = _row_shape(shape)
    if bits == 32:
        values = np.frombuffer(octets.take(4 * rows * columns, f"{name}.values"), "<f4")
        check_values(values, octets.path(name))
        return _from_rows(values.reshape(rows, columns), shape)
    scales = np.frombuffer(octets.take(4 * rows, f"{name}.scales"), "<f4").astype(np.float32)
    top = _TOP[bits]
    check_values(scales, octets.path(f"{name}.scales"))
    if np.signbit(scales).any():
        raise InvalidInput(octets.path(f"{name}.scales"), "must be 0 or more")
    packed = octets.take((rows * columns * bits + 7) // 8, f"{name}.codes")
    codes = _unpack(packed, rows * columns, bits, octets.path(f"{name}.codes"))
    codes = codes.reshape(rows, columns)
    if (codes < -top).any():
        raise InvalidInput(octets.path(f"{name}.codes"), f"must be in {-top} … {top}")
    if codes[scales == 0].any():
        raise InvalidInput(octets.path(f"{name}.codes"), "must be 0 where the scale is")
    return _from_rows(scales[:, None] * codes.astype(np.float32), shape)


def _pack(codes: NDArray[np.int8], bits: Bits) -> bytes:
    if bits == 8:
        return codes.tobytes()
    halves = (codes.ravel() + _BIAS).astype(np.uint8)
    if halves.size % 2:
        halves = np.append(halves, np.uint8(_BIAS))
    return bytes((halves[::2] | (halves[1::2] << 4)).astype(np.uint8).tobytes())


def _unpack(packed: bytes, count: int, bits: Bits, field: str) -> NDArray[np.int8]:
    if bits == 8:
        return np.frombuffer(packed, np.int8)
    both = np.frombuffer(packed, np.uint8)
    codes = np.stack([both & 15, both >> 4], axis=1).ravel().astype(np.int8) - np.int8(_BIAS)
    if codes[count:].any():
        raise InvalidInput(field, "has an odd count, and its last half byte is not 8")
    return codes[:count]


def _row_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) == 1:
        return 1, shape[0]
    return min(shape), max(shape)


def _turned(shape: tuple[int, ...]) -> bool:
    """Whether a tensor's rows are its second axis."""
    return len(shape) == 2 and shape[0] > shape[1]


def _rows(tensor: Floats) -> Floats:
    """The tensor with its shorter axis first."""
    if tensor.ndim == 1:
        return tensor[None]
    return tensor if tensor.shape[0] <= tensor.shape[1] else tensor.T


def _from_rows(rows: Floats, shape: tuple[int, ...]) -> Floats:
    values = rows.T if _turned(shape) else rows.reshape(shape)
    return np.ascontiguousarray(values, np.float32)


def _number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")
