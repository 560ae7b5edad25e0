"""What torch's autograd makes of a lesson: the same adapter, put behind the model's own linears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from edge.adapter import LoraPair
from edge.slots import linear_name
from edge.training import GradientSession, Outcome

Tensors = dict[str, tuple[torch.Tensor, torch.Tensor]]


class Reference:
    """A model with an adapter behind its linears, to be used in a ``with``."""

    def __init__(self, model: PreTrainedModel, pairs: Mapping[str, LoraPair]) -> None:
        self._model = model
        self.tensors: Tensors = {
            name: tuple(torch.tensor(half, requires_grad=True) for half in (pair.a, pair.b))
            for name, pair in pairs.items()
        }
        self._hooks = []

    def __enter__(self) -> Reference:
        for path, module in self._model.named_modules():
            pair = self.tensors.get(linear_name(path))
            if pair is not None:

                def add(_module, given, out, pair=pair):
                    return out + (given[0] @ pair[0]) @ pair[1]

                self._hooks.append(module.register_forward_hook(add))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def log_probabilities(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """[len(answer) + 1, vocabulary]: of what follows the prompt and each further token."""
        ids = torch.tensor([[*prompt, *answer]])
        logits = self._model(ids).logits[0, len(prompt) - 1 :]
        return torch.log_softmax(logits, -1)

    def text_loss(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        rows = self.log_probabilities(prompt, answer)
        return -torch.stack([rows[i, token] for i, token in enumerate(answer)]).mean()

    def gradients(self, loss: torch.Tensor) -> dict[str, LoraPair]:
        loss.backward()
        return {
            name: LoraPair(a.grad.numpy(), b.grad.numpy()) for name, (a, b) in self.tensors.items()
        }


def random_pairs(session: GradientSession, seed: int = 0, rank: int = 3) -> dict[str, LoraPair]:
    """An adapter for every linear that the session trains; ranks from 1 to ``rank``."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for slot in session.slots:
        for module, width in zip(slot.modules, slot.widths, strict=True):
            own = int(rng.integers(1, rank + 1))
            a = 0.2 * rng.normal(size=(slot.columns, own))
            b = 0.2 * rng.normal(size=(own, width))
            pairs[module] = LoraPair(a.astype(np.float32), b.astype(np.float32))
    return pairs


def flat(pairs: Mapping[str, LoraPair]) -> np.ndarray:
    """All numbers of an adapter, or of its gradient, as one vector."""
    return np.concatenate(
        [half.ravel() for _, pair in sorted(pairs.items()) for half in (pair.a, pair.b)]
    ).astype(np.float64)


def relative_error(outcome: Outcome, expected: Mapping[str, LoraPair]) -> float:
    """|g − e| / |e| over all tensors."""
    found, wanted = flat(outcome.gradients), flat(expected)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
