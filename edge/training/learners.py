"""What can be learned from examples of one closed set: LoRA, a head, or both; and which is best.

They are compared by their loss on the share kept aside, −log P(right answer) in the set, as a
device would score it. LoRA's is the trainer's own; a head's comes from what the model shows of the
examples, which is measured once and may be kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.files import write_whole
from cascade.task import Task
from edge.adapter import Adapter, AdapterManifest, LoraPair
from edge.head import Head, HeadSpec
from edge.model import OnnxModel
from edge.training.examples import LessonMaker, TrainingExample
from edge.training.head import HeadData, head_scores, mean_loss, train_head
from edge.training.softmax import log_softmax

Learner = Literal["head", "lora", "both"]
LEARNERS: tuple[Learner, ...] = ("head", "lora", "both")
"""From the cheapest on: of equal losses the first one is taken."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An adapter to be.

    Arguments:
        loss: on the share kept aside; None where nothing was.
    """

    learner: Learner
    pairs: Mapping[str, LoraPair]
    head: Head | None
    loss: float | None


def closed_task(examples: Sequence[TrainingExample], maker: LessonMaker) -> Task | None:
    """How the one closed set of all examples is worded; None where there is no such set."""
    sets = {example.options for example in examples}
    options = next(iter(sets)) if len(sets) == 1 else ()
    return maker.task_of(options) if options else None


class Measuring:
    """What a model shows of examples, once each.

    Arguments:
        model: its active adapter is part of what is shown.
        keep: folder for what was measured, from run to run; None keeps nothing.
        scores: whether the answers are scored, too; if not, their scores are 0, and reading an
            example costs no more than its prompt.
    """

    def __init__(
        self, model: OnnxModel, task: Task, *, keep: Path | None = None, scores: bool = True
    ) -> None:
        self._model, self._task, self._scores = model, task, scores
        self._nothing = np.zeros(len(task.options))
        info = model.info
        parts = [info.base_digest, info.adapter_digest, str(model.hidden_layer)]
        # Features are the same for whatever answers.
        wording = json.dumps(task.to_json(), sort_keys=True)
        parts += [wording] if scores else ["features", repr(task.for_device("\ue000"))]
        state = "\n".join(parts)
        self._folder = None if keep is None else keep / hashlib.sha256(state.encode()).hexdigest()

    def data(
        self,
        examples: Sequence[TrainingExample],
        on_example: Callable[[int], None] = lambda done: None,
    ) -> HeadData:
        """The examples as a head sees them, in their order; equal inputs are a group."""
        texts = [example.messages[-1].content for example in examples]
        rows = []
        for number, text in enumerate(texts, start=1):
            rows.append(self.of(text))
            on_example(number)
        return HeadData(
            features=np.stack([features for features, _ in rows]),
            scores=np.stack([scores for _, scores in rows]),
            labels=np.array([self._task.options.index(e.answer) for e in examples], np.intp),
            weights=np.array([example.weight for example in examples], np.float64),
            groups=tuple(texts),
        )

    def of(self, text: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Features and scores of one input."""
        if self._folder is None:
            return self._read(text)
        path = self._folder / f"{hashlib.sha256(text.encode()).hexdigest()}.npz"
        try:
            with np.load(path, allow_pickle=False) as kept:
                return kept["features"], kept["scores"] if self._scores else self._nothing
        except (OSError, ValueError, EOFError, KeyError):  # not there, or cut short
            features, scores = self._read(text)
        file = io.BytesIO()
        np.savez(file, features=features, scores=scores)
        write_whole(path, file.getvalue(), private=True)
        return features, scores

    def _read(self, text: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        if self._scores:
            return self._model.measured(self._task, text)
        return self._model.features(self._task, text), self._nothing


def own_loss(data: HeadData, parent: Head | None = None) -> float | None:
    """Loss of the model's own scores, or of a head that it has already; None without examples."""
    if not len(data):
        return None
    return mean_loss(
        log_softmax(data.scores) if parent is None else head_scores(parent, data), data
    )


def head_candidate(
    task: Task,
    layer: int,
    training: HeadData,
    held_out: HeadData,
    *,
    pairs: Mapping[str, LoraPair],
    learner: Learner = "head",
    parent: Head | None = None,
    balance: bool = False,
    seed: int = 0,
) -> Candidate:
    """A head beside ``pairs``, both measured under them.

    Arguments:
        learner: with ``"both"`` the pairs were trained on ``training``, so that the weight of the
            model's own scores is fitted on ``held_out``, which its loss then flatters by that one
            number.
        parent: a head for the same task to go on from; another task's is left aside.
    """
    if parent is not None and not parent.spec.task.asked_like(task):
        parent = None
    trained = train_head(
        HeadSpec(task, layer),
        training,
        parent=parent,
        lm_data=held_out if learner == "both" and len(held_out) else None,
        balance=balance,
        seed=seed,
    )
    loss = None
    if len(held_out):
        loss = mean_loss(head_scores(trained.head, held_out), held_out)
    return Candidate(learner, pairs, trained.head, loss)


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The least loss on the share kept aside; without one the first, which is the cheapest.

    Raises:
        InvalidInput: there is none, or none whose loss is a number.
    """
    if not candidates:
        raise InvalidInput("learner", "has nothing that could be trained")
    sound = [each for each in candidates if each.loss is None or math.isfinite(each.loss)]
    if not sound:
        raise InvalidInput("learner", "the loss of none is a number; look at the examples' weights")
    ordered = sorted(sound, key=lambda each: LEARNERS.index(each.learner))
    return min(ordered, key=lambda each: 0.0 if each.loss is None else each.loss)


def activate(model: OnnxModel, pairs: Mapping[str, LoraPair]) -> None:
    """Apply pairs that are no signed adapter yet, without a head."""
    if not pairs:
        model.use_adapter("")
        return
    state = hashlib.sha256()
    for name, pair in sorted(pairs.items()):
        state.update(name.encode() + pair.a.tobytes() + pair.b.tobytes())
    manifest = AdapterManifest("in training", 1, "", model.info.base_digest, "", "")
    model.use_adapter(model.load_adapter(Adapter(manifest, state.hexdigest(), pairs)))
