"""A device that learns a head: what it reads, what it sends, and what it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade.cli import main
from cascade.conditions import Conditions, FixedConditions
from cascade.federation.plan import RoundPlan
from cascade.request import Message
from cascade.task import Task, generic
from cascade.testing import TinyBundle
from edge import Adapter, OnnxModel
from edge.adapter import write_adapter
from edge.examples import CurationRules, Example, ExampleStore, Source, Weighted
from edge.federation import ExampleTrainer, NoGain, Paused, StartingPoint, Trained
from edge.federation.head_trainer import head_data
from edge.head import Head, HeadSpec
from edge.training.allowance import TrainingAllowance
from edge.training.policy import TrainingLimits
from edge.training.softmax import log_softmax
from tests.cloud.federation.test_device import Clock

OPTIONS = ("red", "green", "blue")
TASK = replace(generic(OPTIONS), task_id="colours")
PLAN = RoundPlan(clip_norm=20.0, rows=True)
RESTING = Conditions("unmetered", charging=True, idle=True)


def untrained(tiny: TinyBundle) -> Head:
    model = OnnxModel(tiny.bundle)
    features = model.features(TASK, "a house")
    size = len(features)
    return Head(
        HeadSpec(TASK, model.hidden_layer),
        np.zeros((3, size), np.float32),
        np.zeros(3, np.float32),
        np.zeros(size, np.float32),
        np.full(size, float(np.abs(features).mean()), np.float32),
    )


def point(tiny: TinyBundle, head: Head, folder: Path) -> StartingPoint:
    base = tiny.bundle.manifest.base_digest
    path = write_adapter(
        folder / "start", {}, name="start", base_digest=base, signing_key=tiny.key, head=head
    )
    return StartingPoint(base, Adapter.open(path, tiny.trust), head.tensors())


def trainer(
    tiny: TinyBundle,
    folder: Path,
    answers: tuple[str, ...],
    *,
    own: tuple[str, ...] = (),
    rehearsal: float = 0.1,
    task_id: str = "",
    options: tuple[str, ...] = OPTIONS,
) -> ExampleTrainer:
    """A device with 60 corrections, and as many answers of its own where ``own`` says which.

    Arguments:
        task_id, options: as the application asked for the corrections.
    """
    store = ExampleStore(folder / "examples.sqlite3", clock=lambda: 1_700_000_100.0)
    store.grant()
    words = {"red": "house", "green": "river", "blue": "light"}
    for number in range(60):
        answer = answers[number % len(answers)]
        said = (Message("user", f"{number} is {words[answer]}"),)
        at = 1_700_000_000.0 + number
        example = Example(
            f"r{number}", said, answer, Source.CORRECTION, at, options=options, task_id=task_id
        )
        assert store.add(example) is None
    for number in range(60 if own else 0):
        answer = own[number % len(own)]
        said = (Message("user", f"{number} has {words[answer]}"),)
        kept = Example(f"k{number}", said, answer, Source.DEVICE, at, options=OPTIONS)
        assert store.add(kept) is None
    allowance = TrainingAllowance(
        TrainingLimits(), FixedConditions(RESTING), path=folder / "training.sqlite3"
    )
    rules = CurationRules(rehearsal=rehearsal)
    return ExampleTrainer(tiny.bundle, store, allowance, task=TASK, rules=rules)


def test_a_device_sends_rows_of_the_answers_that_it_knows(tiny: TinyBundle, tmp_path: Path) -> None:
    start = point(tiny, untrained(tiny), tmp_path)
    trained = trainer(tiny, tmp_path, ("red", "green"))(PLAN, start)
    assert set(trained.change) == {"head.weight", "head.bias"}
    assert trained.row_counts[2] == 0
    assert trained.row_counts[:2].min() > 10
    assert int(trained.row_counts.sum()) == trained.examples
    weight = trained.change["head.weight"]
    assert not weight[2].any()
    assert weight[0].any()
    # What it has learned tells the two apart.
    model, head = OnnxModel(tiny.bundle), start.adapter.head
    assert head is not None
    after = replace(head, weight=head.weight + weight, bias=head.bias + trained.change["head.bias"])
    right = [
        int(after.logits(model.features(TASK, f"{number} is {word}")).argmax()) == place
        for number in range(60, 100)
        for word, place in (("house", 0), ("river", 1))
    ]
    assert np.mean(right) > 0.65


def test_own_answers_are_rehearsed_and_count_for_no_row(tiny: TinyBundle, tmp_path: Path) -> None:
    start = point(tiny, untrained(tiny), tmp_path)
    own = ("red", "green", "blue")

    def sent(name: str, rehearsal: float) -> Trained:
        learner = trainer(tiny, tmp_path / name, ("red", "green"), own=own, rehearsal=rehearsal)
        return learner(PLAN, start)

    with_own, without = sent("with", 0.1), sent("without", 0)
    assert with_own.examples == without.examples
    assert np.array_equal(with_own.row_counts, without.row_counts)
    both, alone = with_own.change["head.weight"], without.change["head.weight"]
    assert not both[2].any()  # nobody but the device itself says what is blue
    assert not np.array_equal(both[:2], alone[:2])


def test_what_is_rehearsed_is_remembered(tiny: TinyBundle, tmp_path: Path) -> None:
    start = point(tiny, untrained(tiny), tmp_path)
    model, head = OnnxModel(tiny.bundle), start.adapter.head
    assert head is not None
    own = ("green", "red")

    def loss_of_own(rehearsal: float) -> float:
        learner = trainer(
            tiny, tmp_path / str(rehearsal), ("red", "green"), own=own, rehearsal=rehearsal
        )
        change = learner(PLAN, start).change
        after = replace(
            head,
            weight=head.weight + change["head.weight"],
            bias=head.bias + change["head.bias"],
        )
        words = {"red": "house", "green": "river"}
        said = [(own[n % 2], f"{n} has {words[own[n % 2]]}") for n in range(60)]
        logits = np.stack([after.logits(model.features(TASK, text)) for _, text in said])
        right = [OPTIONS.index(answer) for answer, _ in said]
        return float(-log_softmax(logits)[np.arange(60), right].mean())

    assert loss_of_own(1.0) < loss_of_own(0.1) < loss_of_own(0)


def test_reading_stops_when_the_device_is_picked_up(tiny: TinyBundle, tmp_path: Path) -> None:
    start = point(tiny, untrained(tiny), tmp_path)
    trainer(tiny, tmp_path, ("red", "green"), own=("green", "red"))
    store = ExampleStore(tmp_path / "examples.sqlite3", clock=lambda: 1_700_000_100.0)
    clock, host, model = Clock(), FixedConditions(RESTING), OnnxModel(tiny.bundle)
    began_s, seen = clock.uptime_s, list[int]()

    def measure(task: Task, text: str) -> tuple[np.ndarray, np.ndarray]:
        clock.passes(0.5)
        if clock.uptime_s - began_s >= 10:
            host.set(replace(RESTING, idle=False))
        return model.features(task, text), np.zeros(len(task.options))

    stopped = ExampleTrainer(
        tiny.bundle,
        store,
        TrainingAllowance(TrainingLimits(), host, path=tmp_path / "books.sqlite3", clock=clock),
        task=TASK,
        measure=lambda _: measure,
        watch=lambda what, done, total: seen.append(done),
    )
    with pytest.raises(Paused, match="stopped while examples were read: not_idle"):
        stopped(PLAN, start)
    assert clock.uptime_s - began_s <= 11.5
    assert seen == list(range(len(seen)))


@pytest.mark.parametrize("asked", ["", "colours", "colours.wall"])
def test_examples_of_the_head_s_task_are_learned(asked: str, tiny: TinyBundle) -> None:
    head = untrained(tiny)
    data = head_data(head, [corrected("red", asked), corrected("blue", asked)], nothing)
    assert data is not None
    assert data.labels.tolist() == [0, 2]


@pytest.mark.parametrize("asked", ["wine", "coloursofwine"])
def test_another_task_with_the_same_answers_teaches_a_head_nothing(
    asked: str, tiny: TinyBundle, tmp_path: Path
) -> None:
    head = untrained(tiny)
    mixed = [corrected("red", asked), corrected("green", "colours"), corrected("blue", asked)]
    data = head_data(head, mixed, nothing)
    assert data is not None
    assert data.labels.tolist() == [1]
    learner = trainer(tiny, tmp_path, ("red", "green"), task_id=asked)
    with pytest.raises(NoGain, match="two answers"):
        learner(PLAN, point(tiny, head, tmp_path))


def test_a_head_of_no_name_learns_from_all_that_is_asked_with_its_answers(
    tiny: TinyBundle,
) -> None:
    head = untrained(tiny)
    unnamed = replace(head, spec=replace(head.spec, task=generic(OPTIONS)))
    data = head_data(unnamed, [corrected("red", "wine"), corrected("blue")], nothing)
    assert data is not None
    assert data.labels.tolist() == [0, 2]


def test_answers_in_another_order_are_the_same_answers(tiny: TinyBundle, tmp_path: Path) -> None:
    turned = ("blue", "red", "green")
    given = [corrected("red", options=turned), corrected("green", options=turned)]
    data = head_data(untrained(tiny), given, nothing)
    assert data is not None
    assert data.labels.tolist() == [0, 1]
    assert head_data(untrained(tiny), [corrected("red", options=("red", "blue"))], nothing) is None
    start = point(tiny, untrained(tiny), tmp_path)
    sent = [
        trainer(tiny, tmp_path / options[0], ("red", "green"), options=options)(PLAN, start)
        for options in (OPTIONS, turned)
    ]
    assert np.array_equal(sent[0].change["head.weight"], sent[1].change["head.weight"])


def corrected(answer: str, task_id: str = "", options: tuple[str, ...] = OPTIONS) -> Weighted:
    said = (Message("user", f"it is {answer}"),)
    example = Example(
        answer, said, answer, Source.CORRECTION, 0.0, options=options, task_id=task_id
    )
    return Weighted(example, 1.0)


def nothing(task: Task, text: str) -> tuple[np.ndarray, np.ndarray]:
    """What a model shows that shows nothing."""
    return np.zeros(4, np.float32), np.zeros(len(task.options))


def test_one_answer_alone_teaches_no_head(tiny: TinyBundle, tmp_path: Path) -> None:
    with pytest.raises(NoGain, match="two answers"):
        trainer(tiny, tmp_path, ("blue",))(PLAN, point(tiny, untrained(tiny), tmp_path))


def test_features_are_those_that_are_measured_with_scores(tiny: TinyBundle) -> None:
    model = OnnxModel(tiny.bundle)
    both, scores = model.measured(TASK, "1 is house")
    assert np.array_equal(model.features(TASK, "1 is house"), both)
    assert scores.shape == (3,)


def test_a_rehearsal_out_of_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["federation", "participate", "--rehearsal", "3"]) == 2
    assert capsys.readouterr().err == "cascade federation: --rehearsal: 3 is not in 0 … 1\n"
