"""Runs on the tiny bundle: they learn, repeat themselves, and lose nothing that was committed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cascade.errors import BundleError, CascadeError, InvalidInput
from cascade.request import Message
from edge.adapter import Adapter, write_adapter
from edge.training import (
    GradientSession,
    LessonMaker,
    Parameters,
    Trainer,
    TrainingExample,
    TrainingPlan,
    drawn_a,
    open_training,
    text_lesson,
)
from edge.training.trainer import kept_aside

OPTIONS = ("red", "green", "blue")
PLAN = TrainingPlan(
    layers=2, rank=4, epochs=4, batch_size=4, learning_rate=2e-2, val_share=0.25, patience=0
)


@pytest.fixture(scope="module")
def lessons(tiny):
    maker = LessonMaker(tiny.bundle)
    words = ("house", "river", "light", "water", "small", "large", "first", "last")
    return [
        maker.lesson(TrainingExample((Message("user", f"{one} {two}"),), OPTIONS[i % 3], OPTIONS))
        for i, one in enumerate(words)
        for two in words[:3]
    ]


@pytest.fixture(scope="module")
def session(tiny):
    return GradientSession(tiny.bundle)


def bytes_of(pairs) -> bytes:
    return b"".join(pair.a.tobytes() + pair.b.tobytes() for _, pair in sorted(pairs.items()))


def trained(session, lessons, plan=PLAN, **more) -> Trainer:
    trainer = Trainer(session, lessons, plan, **more)
    for _ in trainer.run():
        pass
    return trainer


def test_a_run_learns_and_is_the_same_twice(session, lessons) -> None:
    plan = dataclasses.replace(PLAN, val_share=0.0, epochs=8)
    trainer = Trainer(session, lessons, plan)
    steps = list(trainer.run())
    assert [progress.step for progress in steps] == list(range(1, trainer.steps + 1))
    assert np.mean([p.loss for p in steps[-6:]]) < 0.7 * np.mean([p.loss for p in steps[:6]])
    assert bytes_of(trained(session, lessons, plan).result()) == bytes_of(trainer.result())
    other = dataclasses.replace(plan, seed=1)
    assert bytes_of(trained(session, lessons, other).result()) != bytes_of(trainer.result())


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_run_that_was_left_goes_on_to_the_same_bytes(
    session, lessons, tmp_path, optimiser
) -> None:
    plan = dataclasses.replace(PLAN, optimiser=optimiser)
    whole = trained(session, lessons, plan)
    path = tmp_path / "state"
    for stop in (3, 7):
        trainer = Trainer(session, lessons, plan, checkpoint=path)
        for progress in trainer.run():
            if progress.step == stop:
                break
    last = Trainer(session, lessons, plan, checkpoint=path)
    assert last.done_steps == 7
    for _ in last.run():
        pass
    assert bytes_of(last.result()) == bytes_of(whole.result())
    assert (last.best_loss, last.start_loss) == (whole.best_loss, whole.start_loss)


def test_a_run_killed_within_a_step_keeps_the_steps_before(
    session, lessons, tmp_path, monkeypatch
) -> None:
    path = tmp_path / "state"
    trainer = Trainer(session, lessons, PLAN, checkpoint=path)
    run = trainer.run()
    for _ in range(4):
        next(run)
    own = session.run

    def killed(*given):
        own(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        next(run)
    monkeypatch.setattr(session, "run", own)
    again = Trainer(session, lessons, PLAN, checkpoint=path)
    assert again.done_steps == 4
    for _ in again.run():
        pass
    assert bytes_of(again.result()) == bytes_of(trained(session, lessons).result())


def test_another_run_s_checkpoint_is_not_taken(session, lessons, tmp_path) -> None:
    path = tmp_path / "state"
    trained(session, lessons, checkpoint=path)
    for other in (
        Trainer(session, lessons, dataclasses.replace(PLAN, rank=2), checkpoint=path),
        Trainer(session, lessons[1:], PLAN, checkpoint=path),
    ):
        assert other.done_steps == 0
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InvalidInput, match="damaged"):
        Trainer(session, lessons, PLAN, checkpoint=path)


def test_what_comes_out_is_the_best_on_the_share_kept_aside(session, lessons) -> None:
    plan = dataclasses.replace(PLAN, learning_rate=0.5, schedule="constant", patience=2, epochs=50)
    trainer = Trainer(session, lessons, plan)
    held = [p.held_out for p in trainer.run() if p.held_out is not None]
    assert len(held) < 50, "it stops early"
    assert trainer.best_loss == min([trainer.start_loss, *held])
    loss = session.run(trainer.held_out, trainer.result()).loss
    assert loss == pytest.approx(trainer.best_loss, rel=1e-5)
    learned = {lesson.digest for lesson in trainer.training}
    assert learned.isdisjoint(lesson.digest for lesson in trainer.held_out)


def test_frozen_a_stays_and_is_the_same_for_all(session, lessons) -> None:
    plan = dataclasses.replace(PLAN, frozen_a="round 7")
    for module, pair in trained(session, lessons, plan).result().items():
        columns = pair.a.shape[0]
        assert pair.a.tobytes() == drawn_a("round 7", module, columns, 4).tobytes()
        assert pair.b.any()
    wide = drawn_a("round 7", "layers.0.q_proj", 64, 8)
    assert np.array_equal(wide[:, :4], drawn_a("round 7", "layers.0.q_proj", 64, 4))
    assert wide.std() == pytest.approx(64**-0.5, rel=0.1)


def test_an_adapter_goes_on_from_its_parent(session, lessons, tiny, tmp_path) -> None:
    first = dataclasses.replace(PLAN, modules=("v_proj", "down_proj"))
    parent = trained(session, lessons, first).result()
    path = write_adapter(
        tmp_path / "parent",
        parent,
        name="parent",
        base_digest=tiny.bundle.manifest.base_digest,
        signing_key=tiny.key,
    )
    opened = Adapter.open(path, tiny.trust)
    again, pairs = open_training(tiny.bundle, opened)
    assert again.run(lessons, pairs).loss == pytest.approx(session.run(lessons, parent).loss)
    last = dataclasses.replace(PLAN, layers=1, modules=("v_proj",))
    child = trained(again, lessons, last, parent=opened.pairs)
    kept = [name for name in parent if name != "layers.1.v_proj"]
    assert all(np.array_equal(child.result()[name].b, parent[name].b) for name in kept)
    assert child.result().keys() == parent.keys()
    assert child.start_loss == pytest.approx(again.run(child.held_out, pairs).loss, rel=1e-5)


def test_alpha_is_part_of_b(session) -> None:
    plan = dataclasses.replace(PLAN, alpha=12.0, rank=3)
    parameters = Parameters(session.slots, plan)
    vector = parameters.start() + np.float32(1)
    assert all(np.allclose(pair.b, 4.0) for pair in parameters.pairs(vector).values())


def test_a_loss_that_is_no_number_ends_the_run(session, lessons, tmp_path, monkeypatch) -> None:
    path, own = tmp_path / "state", session.run
    trainer = Trainer(session, lessons, PLAN, checkpoint=path)
    run = trainer.run()
    next(run)
    monkeypatch.setattr(
        session, "run", lambda *given: dataclasses.replace(own(*given), loss=float("nan"))
    )
    with pytest.raises(CascadeError, match="smaller --learning-rate"):
        next(run)
    assert Trainer(session, lessons, PLAN, checkpoint=path).done_steps == 1


def test_examples_that_weigh_nothing_are_no_examples(session, lessons) -> None:
    plan = dataclasses.replace(PLAN, val_share=0.5)
    _, aside = kept_aside(lessons, plan)
    digests = {each.digest for each in aside}
    for part, said in ((False, "examples to learn from weigh 0"), (True, "kept aside weigh 0")):
        given = [
            dataclasses.replace(each, weight=0.0 if (each.digest in digests) is part else 1.0)
            for each in lessons
        ]
        with pytest.raises(InvalidInput, match=f"data: all .* {said}"):
            Trainer(session, given, plan)


def test_what_cannot_be_trained_is_refused(session, lessons) -> None:
    with pytest.raises(BundleError, match="--gradient 3"):
        Trainer(session, lessons, dataclasses.replace(PLAN, layers=3))
    long = [text_lesson([5] * 40, [6])]
    with pytest.raises(InvalidInput, match="1 are longer than 30 tokens"):
        Trainer(session, long, dataclasses.replace(PLAN, max_tokens=30))
