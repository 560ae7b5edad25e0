"""What a classifier takes and gives: the part of a bundle's manifest that a decoder has not.

Pure values and checks on arrays; running the graphs is ``edge.classifier``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.request import check_options
from cascade.strict import Fields
from cascade.tensor import DTYPES, Tensor

Scores = Literal["probabilities", "logits"]
SCORES: Final[tuple[Scores, ...]] = ("probabilities", "logits")

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input.

    Arguments:
        name: its name in the graph.
        dtype: NumPy name of the element type.
        shape: as the graph declares it: a length, or a name where any length ≥ 1 will do. The first
            of two or more axes is the batch where it is 1 or named; a request may leave it out.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def batched(self) -> bool:
        """Whether the first axis counts examples."""
        return len(self.shape) > 1 and (isinstance(self.shape[0], str) or self.shape[0] == 1)

    @property
    def example_shape(self) -> tuple[int | str, ...]:
        """Shape of one example, without the batch axis."""
        return self.shape[1:] if self.batched else self.shape

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype}, shape {_shown(self.example_shape)})"

    def read(self, array: Array, model: str) -> Array:
        """``array`` as the graph takes it, with a batch axis of 1.

        Arguments:
            model: the model's name, for messages.

        Raises:
            InvalidInput: of another type or shape, several examples, NaN or infinite.
        """
        where = f"tensors.{self.name}"
        if array.dtype.name != self.dtype:
            raise InvalidInput(
                where,
                f"is {array.dtype.name}; {model} takes {self.dtype}: "
                f'convert it with .astype("{self.dtype}")',
            )
        if self.batched and array.ndim == len(self.shape):
            if array.shape[0] != 1:
                raise InvalidInput(
                    where, f"holds {array.shape[0]} examples; one request asks about one"
                )
            array = array[0]
        if not _fits(array.shape, self.example_shape):
            raise InvalidInput(
                where,
                f"has the shape {_shown(array.shape)}; {model} takes {_shown(self.example_shape)}",
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInput(where, "holds NaN or an infinite value; repair the reading first")
        return array[np.newaxis] if self.batched else array


@dataclass(frozen=True, slots=True)
class ClassifierSpec:
    """Inputs, output and classes of a classifier bundle.

    Arguments:
        inputs: what a request carries, raw as the sensor gives it: the inputs of the preprocessor
            where there is one, else of the model.
        output: the graph's output with one score for each class.
        scores: what these are; logits are turned into probabilities by a softmax.
        labels: the classes, in the order of the scores.
    """

    inputs: tuple[InputSpec, ...]
    output: str
    scores: Scores
    labels: tuple[str, ...]

    def read(self, tensors: Sequence[Tensor], model: str) -> dict[str, Array]:
        """Checked arrays by input name.

        Raises:
            InvalidInput: an input is missing, unknown, or not as ``InputSpec.read`` wants it.
        """
        known = {spec.name: spec for spec in self.inputs}
        given = {tensor.name: tensor for tensor in tensors}
        takes = f"{model} takes {', '.join(map(str, self.inputs))}"
        for name in known:
            if name not in given:
                raise InvalidInput("tensors", f"lack {name!r}; {takes}")
        for name in given:
            if name not in known:
                raise InvalidInput("tensors", f"hold {name!r}, which is no input; {takes}")
        return {name: known[name].read(tensor.array(), model) for name, tensor in given.items()}

    def sample(self) -> tuple[Tensor, ...] | None:
        """An example to try the graphs with, or ``None`` where an axis may have any length."""
        tensors = []
        for spec in self.inputs:
            shape = tuple(axis for axis in spec.example_shape if isinstance(axis, int))
            if len(shape) < len(spec.example_shape):
                return None
            # Not all alike: a graph may divide by the spread of its input.
            values = np.arange(math.prod(shape)).reshape(shape) % 2
            tensors.append(Tensor.of(spec.name, values.astype(spec.dtype)))
        return tuple(tensors)

    @classmethod
    def from_json(cls, value: object, where: str = "classifier") -> Self:
        """Read what ``dataclasses.asdict`` and ``json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields(value, where)
        inputs = fields.take("inputs")
        if not isinstance(inputs, list) or not inputs:
            raise InvalidInput(f"{where}.inputs", "must be a list of at least one input")
        spec = cls(
            inputs=tuple(
                _read_input(item, f"{where}.inputs[{index}]") for index, item in enumerate(inputs)
            ),
            output=fields.text("output"),
            scores="logits" if fields.choice("scores", SCORES) == "logits" else "probabilities",
            labels=fields.texts("labels"),
        )
        fields.end()
        check_labels(spec.labels)
        return spec


def check_labels(labels: tuple[str, ...]) -> None:
    """Raise ``InvalidInput`` unless ``labels`` are at least two different, non-empty texts."""
    try:
        check_options(labels)
    except InvalidInput as problem:
        raise InvalidInput("labels", problem.problem) from None


def _read_input(value: object, where: str) -> InputSpec:
    fields = Fields(value, where)
    name, dtype, shape = fields.text("name"), fields.choice("dtype", DTYPES), fields.take("shape")
    fields.end()
    if not isinstance(shape, list) or not all(_is_axis(axis) for axis in shape):
        raise InvalidInput(f"{where}.shape", "must be a list of lengths and names of axes")
    return InputSpec(name, dtype, tuple(shape))


def _is_axis(axis: object) -> bool:
    return isinstance(axis, str) or (type(axis) is int and axis >= 1)


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        length == axis if isinstance(axis, int) else length >= 1
        for length, axis in zip(shape, wanted, strict=True)
    )


def _shown(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
