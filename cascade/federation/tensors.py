"""The named arrays of an update: which there must be, their norm, clipping, and one flat vector.

Names are those of ``edge.adapter.write_adapter``: ``"layers.0.q_proj.b"`` of shape ``[rank,
outputs]`` and, where A is trained too, ``"layers.0.q_proj.a"`` of shape ``[inputs, rank]``; a head
may be an array of one or two axes by any other name. The order is always that of the sorted names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]
Tensors: TypeAlias = Mapping[str, Floats]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

MAX_TENSORS = 4096
MAX_NAME_BYTES = 255
MAX_ELEMENTS = 1 << 26
"""256 MB as float32: no adapter of a small model is near it."""

MAX_VALUE = 1e30
"""No trained number is near it, and its products and squares do not overflow."""


def check_shapes(shapes: Shapes, field: str = "shapes") -> None:
    """Raise ``InvalidInput`` unless an update may have these shapes.

    A device calls it on the plan that it is sent: a plan is as little to be trusted as an update.
    """
    if not 1 <= len(shapes) <= MAX_TENSORS:
        raise InvalidInput(field, f"has {len(shapes)} tensors; 1 to {MAX_TENSORS} may travel")
    for name, shape in shapes.items():
        if not name or len(name.encode()) > MAX_NAME_BYTES:
            raise InvalidInput(field, f"has a name that is not of 1 to {MAX_NAME_BYTES} bytes")
        if len(shape) not in (1, 2) or min(shape) < 1:
            raise InvalidInput(
                f"{field}.{name}", f"is {list(shape)}; needs one or two axes, each of 1 or more"
            )
    if elements(shapes) > MAX_ELEMENTS:
        raise InvalidInput(field, f"has {elements(shapes)} elements; at most {MAX_ELEMENTS}")


def check_tensors(tensors: Tensors, shapes: Shapes, field: str = "update") -> None:
    """Raise ``InvalidInput``, naming the tensor, unless there are exactly these, finite float32."""
    if missing := min(shapes.keys() - tensors.keys(), default=None):
        raise InvalidInput(f"{field}.{missing}", "is missing")
    if unknown := min(tensors.keys() - shapes.keys(), default=None):
        raise InvalidInput(f"{field}.{unknown}", "is not part of the plan; leave it out")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise InvalidInput(
                f"{field}.{name}",
                f"has the shape {list(tensor.shape)}; the plan says {list(shapes[name])}",
            )
        if tensor.dtype != np.float32:
            raise InvalidInput(f"{field}.{name}", f"is {tensor.dtype}; must be float32")
        check_values(tensor, f"{field}.{name}")


def check_values(values: Floats, field: str) -> None:
    """Raise ``InvalidInput`` unless all are numbers in ±``MAX_VALUE``."""
    if not (np.abs(values) <= MAX_VALUE).all():  # false for NaN, too
        raise InvalidInput(field, f"holds NaN, infinite numbers or some beyond ±{MAX_VALUE:g}")


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Shape by name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def rank_of(shapes: Shapes) -> int:
    """The largest rank of an adapter's pairs; 1 where it has none."""
    return max((shape[0] for name, shape in shapes.items() if name.endswith(".b")), default=1)


def at_rank(served: Tensors, rank: int) -> dict[str, Floats]:
    """What a device of ``rank`` starts from: the leading columns of A and rows of B, heads whole.

    They are the best approximation of that rank where the product mean made them: it orders them.

    Raises:
        InvalidInput: the rank is below 1.
    """
    shapes = shapes_at_rank(shapes_of(served), rank)
    return {
        name: np.ascontiguousarray(tensor[tuple(slice(size) for size in shapes[name])])
        for name, tensor in served.items()
    }


def shapes_at_rank(shapes: Shapes, rank: int) -> dict[str, tuple[int, ...]]:
    """Their shapes.

    Raises:
        InvalidInput: the rank is below 1.
    """
    if rank < 1:
        raise InvalidInput("rank", f"{rank} is not 1 or more")
    less: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name.endswith(".a"):
            less[name] = (shape[0], min(shape[1], rank))
        elif name.endswith(".b"):
            less[name] = (min(shape[0], rank), shape[1])
        else:
            less[name] = tuple(shape)
    return less


def elements(shapes: Shapes) -> int:
    """How many numbers an update of these shapes has."""
    return sum(math.prod(shape) for shape in shapes.values())


def norm(tensors: Tensors) -> float:
    """L2 norm over all elements of all tensors, summed in float64."""
    squares = (float(np.vdot(wide, wide)) for wide in map(_wide, tensors.values()))
    return math.sqrt(math.fsum(squares))


def clip_to_norm(tensors: Tensors, bound: float) -> dict[str, Floats]:
    """The update shortened to an L2 norm of at most ``bound``; its direction stays.

    The bound holds exactly, in spite of rounding to float32: it is what a sensitivity rests on.

    Raises:
        InvalidInput: ``bound`` is not a positive number, or a tensor is not finite.
    """
    if not 0 < bound < math.inf:
        raise InvalidInput("bound", f"{bound} is not a positive number")
    length = norm(tensors)
    if not math.isfinite(length):
        raise InvalidInput("update", "holds NaN or infinite numbers")
    factor = min(1.0, bound / length) if length else 1.0
    less = 2.0**-24  # half a unit in the last place of a float32
    while True:
        shortened = {name: (_wide(t) * factor).astype(np.float32) for name, t in tensors.items()}
        if norm(shortened) <= bound:
            return shortened
        factor *= 1 - less
        less = min(2 * less, 0.5)  # subnormal numbers round by more


def flatten(tensors: Tensors) -> Doubles:
    """All elements in one float64 vector, by sorted name, each tensor in C order."""
    return np.concatenate([_wide(tensors[name]).ravel() for name in sorted(tensors)])


def places(shapes: Shapes) -> dict[str, slice]:
    """Where each tensor lies in what ``flatten`` gives of such tensors, in that order."""
    found, at = {}, 0
    for name in sorted(shapes):
        found[name] = slice(at, at := at + math.prod(shapes[name]))
    return found


def unflatten(vector: NDArray[np.floating], shapes: Shapes) -> dict[str, Floats]:
    """The tensors of a flat vector.

    Raises:
        InvalidInput: the vector is not as long as the shapes say.
    """
    if vector.shape != (elements(shapes),):
        raise InvalidInput("vector", f"has {vector.size} elements, not {elements(shapes)}")
    values = vector.astype(np.float32)
    return {name: values[place].reshape(shapes[name]) for name, place in places(shapes).items()}


def _wide(tensor: Floats) -> Doubles:
    return tensor.astype(np.float64)
