"""The training that ``cascade adapters train`` does: LoRA, a head, or all, and the best of them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascade.cli.progress import ProgressLine
from cascade.errors import InvalidInput

if TYPE_CHECKING:
    from cascade.task import Task
    from edge import Adapter, Bundle, OnnxModel
    from edge.adapter import LoraPair
    from edge.training import Lesson, LessonMaker, Trainer, TrainingExample, TrainingPlan
    from edge.training.head import HeadData
    from edge.training.learners import Candidate, Learner


@dataclass(frozen=True, slots=True)
class Learned:
    """What came of it.

    Arguments:
        losses: of each learner on the share kept aside, where there is one.
        parent_loss: there, before: by the parent's head, where it has one for these questions.
        examples, held_out: how many were learned from, and kept aside.
        steps: of gradient descent.
        state: file that is of no more use once the adapter is written.
    """

    best: Candidate
    losses: dict[str, float | None]
    parent_loss: float | None
    examples: int
    held_out: int
    steps: int
    seconds: float
    state: Path

    @property
    def improved(self) -> bool:
        """Whether it is better than its parent on the share kept aside."""
        loss, before = self.best.loss, self.parent_loss
        return loss is None or before is None or loss < before


def learn(
    args: argparse.Namespace,
    bundle: Bundle,
    parent: Adapter | None,
    *,
    examples: Sequence[TrainingExample],
    lessons: Sequence[Lesson],
    maker: LessonMaker,
    plan: TrainingPlan,
) -> Learned:
    """Train what was asked for, and without being asked what can be trained.

    Raises:
        InvalidInput: a head was asked for, and there is no one closed set.
        BundleError: the bundle cannot train it; the message says why.
    """
    from edge import OnnxModel
    from edge.training import Trainer, open_training
    from edge.training.learners import Candidate, best, closed_task, head_candidate, own_loss
    from edge.training.trainer import kept_aside

    examples, lessons = _fitting(examples, lessons, plan)
    wording = closed_task(examples, maker)
    training, held_out = kept_aside(lessons, plan)
    learned = {lesson.digest for lesson in training}
    answers = {
        e.answer
        for e, each in zip(examples, lessons, strict=True)
        if each.digest in learned and e.weight
    }
    wanted = _wanted(args, bundle, wording if args.learner or len(answers) > 1 else None)
    state = args.out.parent / f".{args.out.name}.training"
    started = time.perf_counter()
    head = None if parent is None else parent.head
    if head is not None and wording is not None and not head.spec.task.asked_like(wording):
        head = None  # of another task: it has no part in these questions
    found: list[Candidate] = []
    parent_loss, steps = None, 0
    trainer: Trainer | None = None
    if wanted != ["head"]:
        session, _ = open_training(bundle, parent, threads=args.threads)
        trainer = Trainer(
            session,
            lessons,
            plan,
            parent=None if parent is None else parent.pairs,
            checkpoint=state,
        )
        _read_trunk(trainer)
        _run(trainer, args.out)
        parent_loss, steps = trainer.start_loss, trainer.done_steps
        if "lora" in wanted:
            other = None if wording is not None or parent is None else parent.head
            found.append(Candidate("lora", trainer.result(), other, trainer.best_loss))
    if wording is not None and (head is not None or wanted != ["lora"]):
        # The same share is kept aside as for LoRA, so that losses can be compared.
        aside = {lesson.digest for lesson in held_out}
        shown = _Shown(
            OnnxModel(bundle, threads=args.threads),
            wording,
            examples,
            np.array([lesson.digest in aside for lesson in lessons]),
        )
        before: Mapping[str, LoraPair] = {} if parent is None else parent.pairs
        sides: dict[Learner, Mapping[str, LoraPair]] = {}
        if "head" in wanted:
            sides["head"] = before
        if "both" in wanted and trainer is not None:
            sides["both"] = trainer.result()
        for learner, pairs in sides.items():
            data, kept = shown.under(pairs, f"the {learner}")
            candidate = head_candidate(
                wording,
                shown.model.hidden_layer,
                data,
                kept,
                pairs=pairs,
                learner=learner,
                parent=head,
                balance=args.balance,
                seed=plan.seed,
            )
            found.append(candidate)
            if learner == "head":
                parent_loss = own_loss(kept, head)
        if head is not None and held_out and "head" not in sides:
            # What LoRA began from are its label words, and a device does not answer by them.
            parent_loss = own_loss(shown.aside(before, "the parent"), head)
    return Learned(
        best(found),
        {each.learner: each.loss for each in found},
        parent_loss,
        len(training),
        len(held_out),
        steps,
        time.perf_counter() - started,
        state,
    )


def _fitting(
    examples: Sequence[TrainingExample], lessons: Sequence[Lesson], plan: TrainingPlan
) -> tuple[list[TrainingExample], list[Lesson]]:
    """Those that are not too long, whatever learns from them."""
    fits = [i for i, lesson in enumerate(lessons) if lesson.tokens <= plan.max_tokens]
    if too_long := len(lessons) - len(fits):
        print(
            f"{too_long} of {len(lessons)} examples are longer than {plan.max_tokens} tokens and "
            "left out; see --max-tokens",
            file=sys.stderr,
        )
    if not fits:
        raise InvalidInput("data", "has no example to learn from; raise --max-tokens")
    return [examples[i] for i in fits], [lessons[i] for i in fits]


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the model shows of examples of one closed set.

    Arguments:
        kept: which of them are kept aside.
    """

    model: OnnxModel
    wording: Task
    examples: Sequence[TrainingExample]
    kept: NDArray[np.bool_]

    def under(self, pairs: Mapping[str, LoraPair], whom: str) -> tuple[HeadData, HeadData]:
        """With these pairs applied: what to learn from, and what is kept aside."""
        data = self._read(self.examples, pairs, whom)
        return data.take(np.flatnonzero(~self.kept)), data.take(np.flatnonzero(self.kept))

    def aside(self, pairs: Mapping[str, LoraPair], whom: str) -> HeadData:
        """The latter alone."""
        aside = [each for each, kept in zip(self.examples, self.kept, strict=True) if kept]
        return self._read(aside, pairs, whom)

    def _read(
        self, examples: Sequence[TrainingExample], pairs: Mapping[str, LoraPair], whom: str
    ) -> HeadData:
        from edge.training.learners import Measuring, activate

        activate(self.model, pairs)
        line = ProgressLine(f"measure for {whom}", len(examples))
        data = Measuring(self.model, self.wording).data(examples, line.update)
        line.done()
        return data


def _wanted(args: argparse.Namespace, bundle: Bundle, wording: Task | None) -> list[str]:
    from edge.bundle import GRADIENT_GRAPH
    from edge.training.gradient import check_trains

    if args.learner in ("head", "both") and wording is None:
        raise InvalidInput(
            f"--{args.learner}", "needs examples of one closed set; give each the same options"
        )
    if args.learner is not None:
        if args.learner != "head":
            check_trains(bundle.manifest)
        return [args.learner]
    if wording is None or not _gives_hidden(bundle):
        check_trains(bundle.manifest)
        return ["lora"]
    return ["head", "lora", "both"] if GRADIENT_GRAPH in bundle.manifest.files else ["head"]


def _gives_hidden(bundle: Bundle) -> bool:
    from edge.model import open_decoder

    return open_decoder(bundle).hidden is not None


def _run(trainer: Trainer, out: Path) -> None:
    line = ProgressLine(f"train {out.name}", trainer.steps, "steps")
    if trainer.done_steps:
        line.note(f"going on after step {trainer.done_steps}")
    try:
        for progress in trainer.run():
            held = "" if progress.held_out is None else f" · held out {progress.held_out:.4f}"
            line.update(progress.step, f"epoch {progress.epoch} · loss {progress.loss:.4f}{held}")
    except KeyboardInterrupt:
        line.abandon()
        print(
            f"\nwhat was learned until step {trainer.done_steps} is kept; the same command goes on",
            file=sys.stderr,
        )
        raise
    except BaseException:
        line.abandon()
        raise
    line.done()


def _read_trunk(trainer: Trainer) -> None:
    """Compute what does not change once, before the first step, so that its graph can go."""
    total = len(trainer.training) + len(trainer.held_out)
    line = ProgressLine("read examples", total)
    for done in trainer.read():
        line.update(done)
    line.done()
