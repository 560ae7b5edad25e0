"""A training run: epochs of steps over lessons, a share kept aside, and pauses.

The order of lessons, and with it every number, follows from the plan's seed: a run that was paused
or killed ends with the same bytes as one that was not. A run is an iterator, so that whoever drives
it decides after each step whether to go on (battery, time, Ctrl-C).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cascade.errors import CascadeError, InvalidInput
from edge.adapter import LoraPair
from edge.training.checkpoint import Checkpoint, read_checkpoint
from edge.training.gradient import GradientSession
from edge.training.lesson import Floats, Lesson
from edge.training.optimisers import clipped, scheduled
from edge.training.parameters import Parameters
from edge.training.plan import TrainingPlan

COMMIT_STEPS = 5
"""Steps after which what was learned is on disk at the latest."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Arguments:
        step, steps: done, and in all unless it stops early.
        epoch: from 1.
        loss: mean of the step's lessons, before the step.
        held_out: loss on the share kept aside, at the end of an epoch; else None.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    held_out: float | None = None


class Trainer:
    """One run.

    Arguments:
        session: of the bundle; its ``frozen`` pairs are the parent's below the trained layers.
        lessons: all examples; the plan says how many of them are kept aside.
        parent: the adapter's pairs to go on from; None starts anew.
        checkpoint: file that holds how far the run is; one of the same run is gone on from.

    Raises:
        InvalidInput: there is nothing to learn from, or the checkpoint is damaged.
        BundleError: the plan asks for what the graph cannot train.
    """

    def __init__(
        self,
        session: GradientSession,
        lessons: Sequence[Lesson],
        plan: TrainingPlan,
        *,
        parent: Mapping[str, LoraPair] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        fitting = [lesson for lesson in lessons if lesson.tokens <= plan.max_tokens]
        self._session, self._plan, self._path = session, plan, checkpoint
        self._parameters = Parameters(session.slots, plan, parent)
        self.training, self.held_out = kept_aside(fitting, plan)
        if not self.training:
            raise InvalidInput(
                "data",
                f"has no example to learn from ({len(lessons) - len(fitting)} are longer than "
                f"{plan.max_tokens} tokens)",
            )
        self._epoch_steps = math.ceil(len(self.training) / plan.batch_size)
        self._optimiser = plan.make_optimiser(self._parameters.size)
        self._state = self._restored() or self._at_start()

    @property
    def steps(self) -> int:
        """Steps of a whole run."""
        steps = self._epoch_steps * self._plan.epochs
        return min(steps, self._plan.max_steps) if self._plan.max_steps else steps

    @property
    def done_steps(self) -> int:
        """Steps done, those before a pause included."""
        return self._state.step

    @property
    def start_loss(self) -> float | None:
        """Loss of the parent on the share kept aside; None before the run, or without a share."""
        return self._state.start_loss

    @property
    def best_loss(self) -> float | None:
        """The least loss on the share kept aside."""
        return self._state.best_loss

    @property
    def improved(self) -> bool:
        """Whether what comes out is better than its parent on the share kept aside."""
        best, start = self._state.best_loss, self._state.start_loss
        return best is None or start is None or best < start

    def result(self) -> dict[str, LoraPair]:
        """The adapter with the least loss on the share kept aside; the last one without a share."""
        vector = self._state.vector if self._state.best_loss is None else self._state.best
        return self._applied(vector)

    def read(self) -> Iterator[int]:
        """Compute what learning does not change, for each example once; the number done so far.
        Without this, it is done as examples come up, and takes more memory."""
        yield from self._session.read((*self.training, *self.held_out))

    def run(self) -> Generator[Progress]:
        """Train to the end, yielding after each step. May be left at any time: what was done is
        committed then, and a new trainer with the same arguments goes on.

        Raises:
            CascadeError: the loss is no number any more; the learning rate is too large.
        """
        try:
            if self.held_out and self._state.start_loss is None:
                loss = self._loss(self._state.vector)
                self._state = dataclasses.replace(self._state, start_loss=loss, best_loss=loss)
            while self._state.step < self.steps and not self._finished():
                progress = self._one_step()
                if self._state.step % COMMIT_STEPS == 0:
                    self.commit()
                yield progress
        finally:
            self.commit()

    def commit(self) -> None:
        """Write down how far the run is."""
        if self._path is not None:
            self._state.write(self._path)

    def _finished(self) -> bool:
        return bool(self._plan.patience) and self._state.waited >= self._plan.patience

    def _one_step(self) -> Progress:
        plan, step, before = self._plan, self._state.step, self._state
        epoch, place = divmod(step, self._epoch_steps)
        order = np.random.Generator(np.random.PCG64([plan.seed, epoch])).permutation(
            len(self.training)
        )
        chosen = order[place * plan.batch_size : (place + 1) * plan.batch_size]
        lessons = [self.training[index] for index in chosen]
        outcome = self._session.run(lessons, self._applied(before.vector))
        gradient = self._parameters.gradient(outcome.gradients)
        if not (math.isfinite(outcome.loss) and np.isfinite(gradient).all()):
            raise CascadeError(
                f"step {step + 1}: the loss is no number any more; train with a smaller "
                "--learning-rate"
            )
        if plan.clip_norm:
            gradient = clipped(gradient, plan.clip_norm)
        rate = plan.learning_rate * scheduled(plan.schedule, step, self.steps, plan.warm_up)
        self._optimiser.restore(before.optimiser)
        vector = self._optimiser.step(before.vector, gradient, rate)
        after = dataclasses.replace(
            before, step=step + 1, vector=vector, optimiser=self._optimiser.state()
        )
        held_out = None
        if self.held_out and (place + 1 == self._epoch_steps or step + 1 == self.steps):
            held_out = self._loss(vector)
            if before.best_loss is None or held_out < before.best_loss:
                after = dataclasses.replace(after, best=vector, best_loss=held_out, waited=0)
            else:
                after = dataclasses.replace(after, waited=after.waited + 1)
        # One assignment: an interrupt leaves the step done or not done.
        self._state = after
        return Progress(step + 1, self.steps, epoch + 1, outcome.loss, held_out)

    def _loss(self, vector: Floats) -> float:
        return self._session.run(self.held_out, self._applied(vector)).loss

    def _applied(self, vector: Floats) -> dict[str, LoraPair]:
        return self._parameters.rest | self._parameters.pairs(vector)

    def _restored(self) -> Checkpoint | None:
        found = None if self._path is None else read_checkpoint(self._path, self._run_digest())
        if found is not None:
            self._optimiser.restore(found.optimiser)
        return found

    def _at_start(self) -> Checkpoint:
        vector = self._parameters.start()
        return Checkpoint(
            run=self._run_digest(),
            step=0,
            vector=vector,
            best=vector,
            best_loss=None,
            start_loss=None,
            waited=0,
            optimiser=self._optimiser.state(),
        )

    def _run_digest(self) -> str:
        state = hashlib.sha256(json.dumps(self._plan.to_json(), sort_keys=True).encode())
        state.update(self._session.manifest.base_digest.encode())
        state.update(self._parameters.start().tobytes())
        for lesson in (*self.training, *self.held_out):
            state.update(f"{lesson.digest} {lesson.weight!r}\n".encode())
        return state.hexdigest()


def kept_aside(
    lessons: Sequence[Lesson], plan: TrainingPlan
) -> tuple[tuple[Lesson, ...], tuple[Lesson, ...]]:
    """Lessons to learn from, and those kept aside, drawn by the plan's seed.

    Equal lessons stay on one side, so that nothing is tested that was learned by heart.

    Raises:
        InvalidInput: all of a side weigh 0.
    """
    groups = list(dict.fromkeys(lesson.digest for lesson in lessons))
    order = np.random.Generator(np.random.PCG64([plan.seed, 2**32 - 1])).permutation(len(groups))
    count = int(plan.val_share * len(groups))
    aside = {groups[index] for index in order[:count]}
    training = tuple(lesson for lesson in lessons if lesson.digest not in aside)
    held_out = tuple(lesson for lesson in lessons if lesson.digest in aside)
    for part, what in ((training, "to learn from"), (held_out, "kept aside")):
        if part and not any(lesson.weight for lesson in part):
            raise InvalidInput(
                "data", f"all {len(part)} examples {what} weigh 0; give some of them a weight"
            )
    return training, held_out
