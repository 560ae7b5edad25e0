"""What a device trains on for a round: its own examples, under its own allowance.

Examples of the store are curated and train what the lease's adapter has: LoRA takes the plan's
steps, a head is fitted. What comes out is judged on the examples that were kept aside, each of the
two by itself, and sent only if it is better there. This is the ``Trainer`` that a ``Participant``
is given.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cascade.clock import Clock, Reading, SystemClock, passed_s
from cascade.errors import CascadeError, InvalidInput
from cascade.federation import Shapes, Tensors, shapes_of
from cascade.federation.payload import NO_COUNTS
from cascade.federation.plan import RoundPlan, is_of_head
from cascade.federation.tensors import Floats
from cascade.files import write_whole
from cascade.task import Task
from edge.adapter import Adapter, LoraPair
from edge.bundle import Bundle
from edge.examples import (
    Consent,
    Curated,
    CurationRules,
    Example,
    ExampleStore,
    Weighted,
    curate,
)
from edge.federation.head_trainer import Measure, head_data, learned, losses, measuring, of_head
from edge.federation.trainer import NoGain, Paused, StartingPoint, Trained
from edge.training.allowance import TrainingAllowance, TrainingSession
from edge.training.evaluate import open_training
from edge.training.examples import LessonMaker, TrainingExample
from edge.training.gradient import GradientSession
from edge.training.lesson import Lesson
from edge.training.plan import TrainingPlan
from edge.training.policy import Hold
from edge.training.softmax import Doubles
from edge.training.trainer import Trainer
from edge.training.worth_sending import worth_sending

_BUDGETS: Final = frozenset({Hold.TIME_SPENT, Hold.STEPS_SPENT, Hold.ENERGY_SPENT})
"""What ends training without voiding it: what was learned until then was paid for."""
_PAUSES: Final = frozenset(
    {
        Hold.NOT_IDLE,
        Hold.NOT_CHARGING,
        Hold.NOT_UNMETERED,
        Hold.TOO_HOT,
        Hold.ALREADY_TRAINING,
        Hold.STOPPED,
        *_BUDGETS,
    }
)
"""What may be over while the lease still holds."""

Opened = tuple[GradientSession, dict[str, LoraPair]]


@dataclass(frozen=True, slots=True)
class _Round:
    """What a part of the adapter is trained with.

    Arguments:
        learn, rehearsal, aside: curated examples, the newest first.
        began: when training did.
    """

    plan: RoundPlan
    start: StartingPoint
    learn: list[Weighted]
    rehearsal: list[Weighted]
    aside: list[Weighted]
    allowed: TrainingSession
    began: Reading


class ExampleTrainer:
    """Trains on the examples of a store. Call it from one thread at a time.

    Arguments:
        bundle: that runs here, with a gradient graph.
        store: of what the device may learn from.
        allowance: what the device may still train.
        task: how closed sets with its options are worded; others as ``cascade.task.generic``.
        rules: of curation.
        epochs: times that each example is seen at most, whatever the plan asks for, ≥ 1.
        level, least: see ``edge.training.worth_sending``. The defaults send whatever is not worse:
            a device has few examples kept aside, on which next to nothing can be shown, and a
            rule that asked for it (0.2, 8) kept whole fleets from learning. The cluster averages
            many updates and tests what comes of them.
        open_session: loads the graphs for an adapter; by default anew for each round.
        measure: what a head sees of examples under an adapter; by default read by a decoder that
            is loaded for it.
        clock: measures the plan's seconds.
        watch: told what is done now and how far it is: a few words, how many, of how many.
    """

    def __init__(
        self,
        bundle: Bundle,
        store: ExampleStore,
        allowance: TrainingAllowance,
        *,
        task: Task | None = None,
        rules: CurationRules | None = None,
        epochs: int = 4,
        level: float = 0.5,
        least: int = 1,
        open_session: Callable[[Adapter], Opened] | None = None,
        measure: Callable[[Adapter], Measure] | None = None,
        clock: Clock | None = None,
        watch: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        self._maker = LessonMaker(bundle, task)
        self._store = store
        self._allowance = allowance
        self._rules = rules
        self._epochs = epochs
        self._level, self._least = level, least
        self._open = open_session or (lambda adapter: open_training(bundle, adapter))
        self._measure = measure or measuring(bundle)
        self._clock = clock or SystemClock()
        self._watch = watch
        self._stopping = threading.Event()
        self._known: tuple[list[Example], Consent | None, Curated] | None = None

    def __call__(self, plan: RoundPlan, start: StartingPoint) -> Trained:
        """Train; see ``edge.federation.Trainer``.

        Raises:
            NoGain: there is too little to learn from, or nothing came of it.
            Paused: the device may not train on now. LoRA's steps are on disk, and another call for
                the same lease goes on from there.
            CascadeError: the allowance cannot be read, or the adapter does not fit.
        """
        self._stopping.clear()
        given = self._allowance.session(participate=True, stopped=self._stopping.is_set)
        try:
            with given as session:
                if not session.permission.allowed:
                    raise _stopped("may not train now", session)
                return self._trained(plan, start, session)
        except Paused:
            raise
        except CascadeError:
            self.discard()
            raise
        finally:
            self._known = None

    def stop(self) -> None:
        """Pause the training under way before its next step: a ``Participant``'s ``stop``."""
        self._stopping.set()

    def discard(self) -> None:
        """Keep nothing of how far training is: a ``Participant``'s ``discard``."""
        self._known = None
        shutil.rmtree(self._store.learning_dir, ignore_errors=True)

    def ready(self) -> str:
        """Why there is too little to learn from, in a line; "" where there is enough: a
        ``Participant``'s ``ready``."""
        chosen = self._chosen(self._store.examples())
        return self._too_little(len(chosen.learn), len(chosen.held_out))

    def fit(self, plan: RoundPlan, start: StartingPoint) -> str:
        """Why nothing can be learned for this adapter, in a line; "" where something may be: a
        ``Participant``'s ``fit``."""
        chosen = self._chosen(self._store.examples())
        head, parts = start.adapter.head, (chosen.learn, chosen.held_out)
        if head is not None and all(of_head(head, part) for part in parts):
            return ""
        if start.adapter.pairs and all(any(self._lessons(part)) for part in parts):
            return ""
        return "no example to learn from, or none kept aside, is of what this adapter answers"

    def consented(self) -> bool:
        """Whether consent stands: a ``Participant``'s ``consented``."""
        return self._store.consent() is not None

    def forgotten(self) -> str:
        """Another word whenever an example was forgotten: a ``Participant``'s ``forgotten``."""
        return self._store.forgotten()

    def _chosen(self, examples: list[Example]) -> Curated:
        """The examples curated: once for a check-in, what it leads to, and those after it that find
        the same ones, because thousands take a second."""
        consent = self._store.consent()
        if self._known is None or self._known[:2] != (examples, consent):
            self._known = (examples, consent, curate(examples, consent, self._rules))
        return self._known[2]

    def _too_little(self, learn: int, aside: int) -> str:
        if learn and aside >= self._least:
            return ""
        return (
            f"{learn} examples to learn from and {aside} kept aside; it needs 1 and {self._least}"
        )

    def _trained(self, plan: RoundPlan, start: StartingPoint, allowed: TrainingSession) -> Trained:
        began = self._clock.read()
        examples = self._store.examples()
        newest_s = max((each.at_s for each in examples), default=0.0)
        # One that is ahead of the clock was kept under another.
        until_s = self._since(plan, start, max(began.wall_s, newest_s))
        examples = [each for each in examples if each.at_s <= until_s]
        chosen = self._chosen(examples)
        learn = _newest(chosen.learn, plan.max_examples)
        aside = _newest(chosen.held_out, plan.max_examples)
        if lack := self._too_little(len(learn), len(aside)):
            raise NoGain(lack)
        made: list[Trained] = []
        why: list[str] = []
        rehearsal = _newest(chosen.rehearsal, plan.max_examples)
        given = _Round(plan, start, learn, rehearsal, aside, allowed, began)
        for part in (self._head, self._lora):
            try:
                made.append(part(given))
            except NoGain as problem:
                why.append(str(problem))
        if not made:
            raise NoGain("; ".join(filter(None, why)))
        shapes = plan.shapes(shapes_of(start.tensors))
        change = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        for each in made:
            change |= each.change
        counts = next((each.row_counts for each in made if each.row_counts.size), NO_COUNTS)
        return Trained(change, max(each.examples for each in made), counts)

    @property
    def _since_path(self) -> Path:
        return self._store.learning_dir / "since"

    def _since(self, plan: RoundPlan, start: StartingPoint, now_s: float) -> float:
        """When training for this round was first begun: what came in a pause is for the next one,
        or no run would ever be the same again."""
        what = f"{plan.seed} {start.adapter.digest}"
        try:
            known, at = self._since_path.read_text().rsplit(" ", 1)
            if known == what:
                return float(at)
        except (OSError, ValueError):  # there is none
            pass
        write_whole(self._since_path, f"{what} {now_s!r}".encode(), private=True)
        return now_s

    def _head(self, of: _Round) -> Trained:
        head = of.start.adapter.head
        if head is None:
            raise NoGain("")
        measure = self._reading(of)
        data, held_out = head_data(head, of.learn, measure), head_data(head, of.aside, measure)
        if data is None or held_out is None or len(set(data.labels.tolist())) < 2:
            raise NoGain("a head needs examples of two answers, and one kept aside")
        after = learned(head, data, head_data(head, of.rehearsal, measure), held_out)
        if of.allowed.stop() and not set(of.allowed.reasons) <= _BUDGETS:
            raise _stopped("stopped while a head was fitted", of.allowed)
        self._judge("head", losses(head, held_out), losses(after, held_out), of.plan.seed)
        return Trained(
            {"head.weight": after.weight - head.weight, "head.bias": after.bias - head.bias},
            len(data),
            np.bincount(data.labels, minlength=len(head.bias)),
        )

    def _reading(self, of: _Round) -> Measure:
        """Measures the examples, says how far it is, and stops when the device may not go on."""
        measure, done = self._measure(of.start.adapter), 0
        total = len(of.learn) + len(of.rehearsal) + len(of.aside)

        def read(task: Task, text: str) -> tuple[Floats, Doubles]:
            nonlocal done
            self._read_on("the head", done, total, of.allowed)
            done += 1
            return measure(task, text)

        return read

    def _lora(self, of: _Round) -> Trained:
        plan, start, allowed = of.plan, of.start, of.allowed
        if not start.adapter.pairs:
            raise NoGain("")
        learn, aside = list(self._lessons(of.learn)), list(self._lessons(of.aside))
        if not learn or not aside:
            raise NoGain("all examples are longer than the model reads")
        session, _ = self._open(start.adapter)
        training = self._plan(plan, start, learn)
        before = dict(start.adapter.pairs)
        checkpoint = self._store.learning_dir / "checkpoint"
        parent = _those_of(session, before)
        trainer = Trainer(session, learn, training, parent=parent, checkpoint=checkpoint)
        if not trainer.training:
            raise NoGain("all examples are too long to be learned from")
        self._read(session, [*trainer.training, *aside], allowed)
        judging = self._clock.read()
        parent_losses = self._losses(session, aside, before)
        # What the parent took to answer is what the adapter will take, and belongs to the plan.
        judging_s = passed_s(judging, self._clock.read())
        run = trainer.run()
        while passed_s(of.began, self._clock.read()) + judging_s < plan.max_seconds:
            if allowed.stop() or next(run, None) is None:
                break
            self._watch("train LoRA", trainer.done_steps, training.max_steps)
        run.close()
        if not allowed.permission.allowed and not set(allowed.reasons) <= _BUDGETS:
            raise _stopped(f"stopped after {trainer.done_steps} steps", allowed)
        after = trainer.result()
        self._watch("compare with the parent", 0, len(aside))
        after_losses = self._losses(session, aside, {**before, **after})
        self._judge("LoRA", parent_losses, after_losses, training.seed)
        shapes = {
            name: shape
            for name, shape in plan.shapes(shapes_of(start.tensors)).items()
            if not is_of_head(name)
        }
        return Trained(_change(start.tensors, after, shapes), len(trainer.training))

    def _read(
        self, session: GradientSession, lessons: list[Lesson], allowed: TrainingSession
    ) -> None:
        """Compute what learning does not change, once."""
        self._read_on("LoRA", 0, len(lessons), allowed)
        for done in session.read(lessons):
            self._read_on("LoRA", done, len(lessons), allowed)

    def _read_on(self, whom: str, done: int, total: int, allowed: TrainingSession) -> None:
        """Say how far reading is; raise ``Paused`` if the device may not go on."""
        self._watch(f"read examples for {whom}", done, total)
        if allowed.over():
            raise _stopped("stopped while examples were read", allowed)

    def _judge(self, what: str, parent: list[float], after: list[float], seed: int) -> None:
        """Raise ``NoGain`` if it is worse than its parent."""
        found = worth_sending(parent, after, level=self._level, least=self._least, seed=seed)
        if not found.send:
            raise NoGain(
                f"{what}: {found.word.replace('_', ' ')}: {found.gain:+.4f} of the loss on "
                f"{found.n} examples kept aside, p = {found.p:.2f}"
            )

    def _plan(self, plan: RoundPlan, start: StartingPoint, lessons: list[Lesson]) -> TrainingPlan:
        named = f"{plan.seed}\n{start.adapter.digest}".encode()
        return TrainingPlan(
            layers=plan.layers,
            modules=tuple(sorted({name.rpartition(".")[2] for name in start.adapter.pairs})),
            frozen_a="the adapter's own" if plan.trained == "b" else "",
            optimiser=plan.optimiser,
            learning_rate=plan.learning_rate,
            epochs=self._epochs,
            batch_size=min(plan.batch, len(lessons)),
            max_steps=plan.max_steps,  # the allowance's are polled; a run that goes on is the same
            val_share=0.0,  # the store has its own, which no round trains on
            patience=0,
            # Another order each round, and the same one if a round is done again.
            seed=int.from_bytes(hashlib.sha256(named).digest()[:6]),
        )

    def _lessons(self, examples: Iterable[Weighted]) -> Iterator[Lesson]:
        for each in examples:
            example = TrainingExample(
                each.example.messages, each.example.answer, each.example.options, each.weight
            )
            try:
                yield self._maker.lesson(example)
            except InvalidInput:
                continue  # longer than the model reads

    def _losses(
        self, session: GradientSession, lessons: list[Lesson], pairs: dict[str, LoraPair]
    ) -> list[float]:
        return session.losses(lessons, _those_of(session, pairs))


def _newest(examples: Iterable[Weighted], most: int) -> list[Weighted]:
    ordered = sorted(examples, key=lambda each: (-each.example.at_s, each.example.request_id))
    return ordered[:most]


def _those_of(session: GradientSession, pairs: dict[str, LoraPair]) -> dict[str, LoraPair]:
    return {name: pair for name, pair in pairs.items() if name in session.modules}


def _change(start: Tensors, after: dict[str, LoraPair], shapes: Shapes) -> Tensors:
    """What training added to the tensors of the plan.

    Raises:
        InvalidInput: it trained others than the plan's: the adapter lacks one, or has layers that
            this bundle's graph does not train.
    """
    trained = {
        f"{name}.{side}": getattr(pair, side) for name, pair in after.items() for side in "ab"
    }
    if unknown := min(trained.keys() - start.keys(), default=None):
        raise InvalidInput("adapter", f"has no {unknown}, and this bundle would train it")
    if missing := min(shapes.keys() - trained.keys(), default=None):
        raise InvalidInput("plan", f"trains {missing}, and this bundle's gradient graph cannot")
    return {name: np.ascontiguousarray(trained[name] - start[name], np.float32) for name in shapes}


def _stopped(where: str, session: TrainingSession) -> CascadeError:
    kind = Paused if set(session.reasons) <= _PAUSES else CascadeError
    return kind(f"{where}: {', '.join(reason.value for reason in session.reasons)}")
