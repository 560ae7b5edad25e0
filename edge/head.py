"""A linear head on hidden states: one matrix that scores the answers of one task.

What it sees of a prompt are the hidden states of some layer: their mean over the tokens that are
the input's own, and those of the last token. Small models know more about a text there than their
label words say. Its scores stand alone, or with the model's own added to them:

    score_k = W_k (x − mean) / scale + b_k + lm_weight · (log p_k − prior_k)

Training one is ``edge.training.head``; asking it is ``edge.choose``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.local import Prompt
from cascade.strict import Fields
from cascade.task import Task

MAX_ELEMENTS = 1 << 22
"""Of the weight: 16 MB, a thousand answers over the states of a model of 2,048."""

MAX_LM_WEIGHT = 100.0

Pooling = Literal["mean_and_last"]
Floats = NDArray[np.float32]

_INPUT = "\ue000"  # private use: stands for the input while a wording is taken apart


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """What a head is for.

    Arguments:
        task: the one task, with its exact wording: it scores no other question.
        layer: layers below the hidden states that it sees.
        lm_weight: of the model's own corrected scores, in [0, 100]; 0 leaves them out, and a
            question then costs no more than reading it.
        pooling: of the states.
    """

    task: Task
    layer: int
    lm_weight: float = 0.0
    pooling: Pooling = "mean_and_last"

    def asked(self, prompt: Prompt, options: tuple[str, ...], option_prefix: str) -> bool:
        """Whether a question is this task's."""
        if not isinstance(prompt, str) or options != self.task.options:
            return False
        wording = self.task.for_device(_INPUT)
        assert isinstance(wording, str)
        before, *_, after = wording.split(_INPUT)
        return (
            option_prefix == self.task.option_prefix
            and len(prompt) >= len(before) + len(after)
            and prompt.startswith(before)
            and prompt.endswith(after)
        )

    def to_json(self) -> dict[str, object]:
        """Plain values for a manifest."""
        return {
            "task": self.task.to_json(),
            "layer": self.layer,
            "lm_weight": self.lm_weight,
            "pooling": self.pooling,
        }

    @classmethod
    def from_json(cls, value: object, *, where: str = "head") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields(value, where)
        task = Task.from_json(fields.take("task"), where=fields.path("task"))
        if not task.options:
            raise InvalidInput(fields.path("task.options"), "are missing; a head needs some")
        layer = fields.integer("layer", 1, 1024)
        lm_weight = fields.number("lm_weight", 0.0, MAX_LM_WEIGHT)
        fields.choice("pooling", get_args(Pooling))
        fields.end()
        return cls(task, layer, lm_weight)


@dataclass(frozen=True, slots=True)
class Head:
    """A head.

    Arguments:
        weight: float32, shape ``[options, features]``; of standardised features.
        bias: float32, shape ``[options]``.
        mean, scale: float32, shape ``[features]``, the latter above 0: what standardises features.
            Fixed when a head is first trained, so that the weights of its descendants can be
            averaged.
    """

    spec: HeadSpec
    weight: Floats
    bias: Floats
    mean: Floats
    scale: Floats

    def standardised(self, features: Floats) -> Floats:
        """Features, shape ``[…, features]``, as the weights take them."""
        return (features - self.mean) / self.scale

    def logits(self, features: Floats) -> NDArray[np.float64]:
        """The scores of the answers, shape ``[options]``, from features of one prompt; of several,
        ``[prompts, options]``."""
        wide = self.standardised(features).astype(np.float64)
        scores: NDArray[np.float64] = wide @ self.weight.T.astype(np.float64) + self.bias
        return scores

    def tensors(self) -> dict[str, Floats]:
        """The tensors of an adapter's file. Of these ``head.weight`` and ``head.bias`` are learned,
        and so travel in an update."""
        return {
            "head.weight": np.ascontiguousarray(self.weight, np.float32),
            "head.bias": np.ascontiguousarray(self.bias, np.float32),
            "head.mean": np.ascontiguousarray(self.mean, np.float32),
            "head.scale": np.ascontiguousarray(self.scale, np.float32),
        }

    @classmethod
    def from_tensors(cls, spec: HeadSpec, tensors: Mapping[str, NDArray[np.floating]]) -> Self:
        """The head among an adapter's tensors.

        Raises:
            InvalidInput: one is missing, too large, of a wrong shape, or holds NaN; it is named.
        """
        options = len(spec.task.options)
        found: dict[str, Floats] = {}
        features = 0
        for part in ("weight", "bias", "mean", "scale"):
            name = f"head.{part}"
            if name not in tensors:
                raise InvalidInput("head", f"{name} is missing")
            tensor = tensors[name]
            if part == "weight" and tensor.ndim == 2:
                features = tensor.shape[1]
            wanted = {"weight": (options, features), "bias": (options,)}.get(part, (features,))
            if tensor.shape != wanted or not features or features % 2:
                raise InvalidInput(
                    "head",
                    f"{name} has the shape {list(tensor.shape)}; {options} answers need "
                    f"{list(wanted)}, of an even number of features",
                )
            if tensor.size > MAX_ELEMENTS:
                raise InvalidInput(
                    "head", f"{name} has {tensor.size} elements; at most {MAX_ELEMENTS}"
                )
            if not np.isfinite(tensor).all():
                raise InvalidInput("head", f"{name} holds NaN or infinite numbers")
            found[part] = tensor.astype(np.float32)
        if not (found["scale"] > 0).all():
            raise InvalidInput("head", "head.scale must be above 0")
        return cls(spec, **found)


def pooled(states: Floats) -> Floats:
    """What a head sees of hidden states ``[tokens, width]``: mean and last, ``[2 · width]``."""
    return np.concatenate([states.mean(axis=0, dtype=np.float64).astype(np.float32), states[-1]])
