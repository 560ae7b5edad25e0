"""What a device uploads, as its plan wants it: an update, alone or with counts of a head's rows.

A head scores the answers of one task, one row an answer. A device that has seen no example of an
answer still pushes its row away from everything, so rows are averaged by how many examples of each
answer a device had:

    row_k = Σ_i c_ik Δ_ik / Σ_i c_ik

The counts travel behind the update, and are in what the device signs:

    the update · "ECCR" · version u8 · rows u32 · counts u32[rows]          little-endian

Under masks there are none: an answer of which one device alone has examples would be a sum of one,
and that is what masks promise never to tell. All rows count alike there.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.federation.expected import Expected
from cascade.federation.octets import Octets
from cascade.federation.plan import RoundPlan, is_of_head
from cascade.federation.tensors import Doubles, Floats, Tensors
from cascade.federation.update import encode

Counts = NDArray[np.int64]

NO_COUNTS: Final[Counts] = np.zeros(0, np.int64)
_MAGIC: Final = b"ECCR"
_VERSION: Final = 1
_MOST: Final = (1 << 32) - 1


def encode_payload(
    plan: RoundPlan, change: Tensors, counts: Counts, rng: np.random.Generator
) -> bytes:
    """An update in the clear.

    Arguments:
        change: clipped; what the plan trains.
        counts: examples of each answer of the head; empty where the plan asks for none.
        rng: of the rounding.

    Raises:
        InvalidInput: a tensor or a count cannot travel.
    """
    update = encode(change, plan.bits, rng)
    if not plan.rows:
        return update
    counts = _checked(counts, _rows(change))
    head = _MAGIC + bytes([_VERSION]) + len(counts).to_bytes(4, "little")
    return update + head + counts.astype("<u4").tobytes()


def decode_payload(
    plan: RoundPlan, data: bytes, expected: Expected
) -> tuple[dict[str, Floats], dict[str, Doubles]]:
    """An update that some device sent in the clear, and what each row of the head's tensors counts
    by their names: no more than ``max_examples``.

    Arguments:
        expected: what the plan's updates look like.

    Raises:
        InvalidInput: the bytes are not exactly one encoding of such an update; the field is named.
    """
    tensors = expected.decode(_update(plan, data, expected))
    return tensors, row_weights(plan, data, expected)


def row_weights(plan: RoundPlan, data: bytes, expected: Expected) -> dict[str, Doubles]:
    """What each row of the head's tensors counts by their names; none where the plan asks for none.

    Raises:
        InvalidInput: what is behind the update are not exactly these counts; the field is named.
    """
    if not plan.rows:
        return {}
    kept = np.minimum(_counts(plan, data, expected), plan.max_examples)
    return {name: kept for name in expected.shapes if is_of_head(name)}


def check_payload(plan: RoundPlan, data: bytes, expected: Expected) -> None:
    """Raise what ``decode_payload`` raises of bytes of any origin."""
    expected.check(_update(plan, data, expected))
    if plan.rows:
        _counts(plan, data, expected)


def _update(plan: RoundPlan, data: bytes, expected: Expected) -> bytes:
    return data[: expected.size] if plan.rows else data


def _counts(plan: RoundPlan, data: bytes, expected: Expected) -> Doubles:
    rows = plan.head_rows(expected.shapes)
    octets = Octets(data[expected.size :], "update.counts")
    octets.exactly(_MAGIC, "magic")
    octets.exactly(bytes([_VERSION]), "version")
    octets.whole(4, "rows", rows, rows)
    counts = np.frombuffer(octets.take(4 * rows, "counts"), "<u4").astype(np.float64)
    octets.end()
    return counts


def _rows(change: Tensors) -> int:
    return next((len(tensor) for name, tensor in change.items() if is_of_head(name)), 0)


def _checked(counts: Counts, rows: int) -> Counts:
    if counts.shape != (rows,) or not ((counts >= 0) & (counts <= _MOST)).all():
        raise InvalidInput("counts", f"must be {rows} whole numbers of 0 or more, one an answer")
    return counts
