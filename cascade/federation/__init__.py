"""What devices and the coordinator of a federation share: pure functions and values, no network.

``update`` turns an update into bytes and back, ``signed`` says what its signature covers,
``masking`` lets a server learn a sum and nothing else. Needs only the base install. Aggregation is
``cloud.federation``, training ``edge.training``; the device that takes part, ``edge.federation``.
"""

from cascade.federation.expected import Expected
from cascade.federation.signed import UpdateStatement, sign_update, verify_update
from cascade.federation.tensors import (
    Floats,
    Shapes,
    Tensors,
    at_rank,
    check_shapes,
    check_tensors,
    clip_to_norm,
    flatten,
    norm,
    shapes_of,
    unflatten,
)
from cascade.federation.update import Bits, decode, encode, encoded_size

__all__ = [
    "Bits",
    "Expected",
    "Floats",
    "Shapes",
    "Tensors",
    "UpdateStatement",
    "at_rank",
    "check_shapes",
    "check_tensors",
    "clip_to_norm",
    "decode",
    "encode",
    "encoded_size",
    "flatten",
    "norm",
    "shapes_of",
    "sign_update",
    "unflatten",
    "verify_update",
]
