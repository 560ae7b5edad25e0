"""A device that really learns: examples of its store, the tiny bundle's gradient graph, a round
of a real coordinator over real sockets, and a candidate that answers otherwise."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from cascade import home, testing
from cascade.cli import main
from cascade.conditions import Conditions, FixedConditions
from cascade.errors import CascadeError, InvalidInput
from cascade.federation import shapes_of
from cascade.federation.plan import RoundPlan
from cascade.request import Message
from cascade.signing import SigningKey, TrustStore
from cascade.testing import TinyBundle
from cascade.wire import ClientProfile
from cloud.federation.adapters import Adapters
from cloud.federation.config import FederationConfig, PlanConfig
from cloud.federation.coordinator import Coordinator
from cloud.federation.database import Database
from cloud.federation.desk import Desk
from cloud.federation.refusals import counters
from cloud.federation.rounds import recent
from cloud.registry import Delivery, Registry
from edge import Adapter
from edge.adapter import LoraPair, write_adapter
from edge.examples import Curated, Example, ExampleStore, Source, curate
from edge.federation import ExampleTrainer, Limits, NoGain, Participant, Paused, StartingPoint, Step
from edge.training import LessonMaker, drawn_a, example_of, open_training
from edge.training.allowance import TrainingAllowance
from edge.training.policy import TrainingLimits
from tests.cloud.federation.federated import Approves

OPTIONS = ("red", "green", "blue")
WORDS = ("house", "river", "light", "water", "small", "large", "first", "last", "stone", "cloud")
RESTING = Conditions("unmetered", charging=True, idle=True)
PLAN = RoundPlan(layers=2, learning_rate=0.05, batch=8, max_steps=24, clip_norm=10.0)

BEGAN = time.time() - 1000  # the command goes by the real clock


class Taken(FixedConditions):
    """A device that is taken up after the first look."""

    asked = 0

    def read(self) -> Conditions:
        self.asked += 1
        return RESTING if self.asked < 2 else replace(RESTING, idle=False)


@dataclass
class Learner:
    """A device with examples of one answer."""

    tiny: TinyBundle
    start: Adapter
    store: ExampleStore
    folder: Path

    def trainer(self, **given: object) -> ExampleTrainer:
        conditions = given.pop("conditions", FixedConditions(RESTING))
        limits = given.pop("limits", TrainingLimits())
        allowance = self.allowance(conditions, limits)  # type: ignore[arg-type]
        return ExampleTrainer(self.tiny.bundle, self.store, allowance, **given)  # type: ignore[arg-type]

    def allowance(self, conditions: FixedConditions, limits: TrainingLimits) -> TrainingAllowance:
        return TrainingAllowance(limits, conditions, path=self.folder / "training.sqlite3")

    @property
    def point(self) -> StartingPoint:
        tensors = {}
        for name, pair in self.start.pairs.items():
            tensors[f"{name}.a"], tensors[f"{name}.b"] = pair.a, pair.b
        return StartingPoint(self.start.manifest.base_digest, self.start, tensors)


def starting_pairs(tiny: TinyBundle, rank: int = 4) -> dict[str, LoraPair]:
    """A of all trained q and v projections, drawn; B is 0."""
    session, _ = open_training(tiny.bundle, None)
    pairs = {}
    for slot in session.slots:
        for module, width in zip(slot.modules, slot.widths, strict=True):
            if module.rpartition(".")[2] in ("q_proj", "v_proj"):
                a = drawn_a("tests", module, slot.columns, rank)
                pairs[module] = LoraPair(a, np.zeros((rank, width), np.float32))
    return pairs


def kept(answer: str = "blue", count: int = 60) -> Iterator[Example]:
    for number in range(count):
        one, two = divmod(number, len(WORDS))
        text = f"{WORDS[one]} {WORDS[two]} number {number}"
        yield Example(
            f"r{number}",
            (Message("user", text),),
            answer,
            Source.CORRECTION,
            BEGAN + number,
            options=OPTIONS,
        )


def filled(path: Path, **given: object) -> ExampleStore:
    store = ExampleStore(path, clock=lambda: BEGAN + 100)
    store.grant()
    for example in kept(**given):  # type: ignore[arg-type]
        assert store.add(example) is None
    return store


@pytest.fixture
def learner(tiny: TinyBundle, tmp_path: Path) -> Learner:
    path = write_adapter(
        tmp_path / "start",
        starting_pairs(tiny),
        name="start",
        base_digest=tiny.bundle.manifest.base_digest,
        signing_key=tiny.key,
    )
    store = filled(tmp_path / "examples.sqlite3")
    return Learner(tiny, Adapter.open(path, tiny.trust), store, tmp_path)


def test_what_is_learned_has_the_plan_s_shape_and_is_better(learner: Learner) -> None:
    trained = learner.trainer()(PLAN, learner.point)
    shapes = PLAN.shapes(shapes_of(learner.point.tensors))
    assert shapes_of(trained.change) == shapes
    assert all(name.endswith(".b") for name in shapes)
    assert trained.examples == len([each for each in learner.store.examples() if not each.held_out])

    session, before = open_training(learner.tiny.bundle, learner.start)
    maker = LessonMaker(learner.tiny.bundle)
    row = {"prompt": "a new text", "answer": "blue", "options": list(OPTIONS)}
    lesson = maker.lesson(example_of(row))
    after = {
        name: LoraPair(pair.a, pair.b + trained.change[f"{name}.b"])
        for name, pair in before.items()
    }
    assert session.run([lesson], after).loss < 0.7 * session.run([lesson], before).loss


def test_the_trunk_is_freed_before_the_first_step(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, pairs = open_training(learner.tiny.bundle, learner.start)
    trunk = session.activations._trunk
    loaded: list[bool] = []
    run = session.run

    def watched(*given: object, **named: object) -> object:
        loaded.append(trunk._session is not None)
        return run(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "run", watched)
    learner.trainer(open_session=lambda _: (session, pairs))(PLAN, learner.point)
    assert len(loaded) > 2  # the parent's answers, steps, and the adapter's answers
    assert not any(loaded)


def test_what_came_in_a_pause_is_for_the_next_round(learner: Learner) -> None:
    taken = learner.trainer(conditions=Taken(), limits=TrainingLimits(steps_per_day=3))
    with pytest.raises(Paused):
        taken(PLAN, learner.point)
    assert (learner.store.learning_dir / "checkpoint").exists()
    late = next(kept(count=1))
    store = ExampleStore(learner.folder / "examples.sqlite3", clock=time.time)
    now = time.time() + 1
    text = (Message("user", "a text that came while it was in use"),)
    assert store.add(replace(late, request_id="late", messages=text, at_s=now)) is None
    steps: list[int] = []
    on = learner.trainer(watch=lambda what, done, _: what == "train LoRA" and steps.append(done))
    on(PLAN, learner.point)
    on.discard()
    assert steps[0] == 4
    again = learner.trainer(limits=TrainingLimits())(PLAN, learner.point)
    assert again.examples >= 1
    # What is not gone on with leaves nothing behind.
    trainer = learner.trainer()
    assert learner.store.learning_dir.exists()
    (learner.store.learning_dir / "checkpoint").write_bytes(b"x")
    trainer.discard()
    assert not learner.store.learning_dir.exists()


def test_training_is_the_same_again(learner: Learner) -> None:
    one = learner.trainer(limits=TrainingLimits(separation_s=0))(PLAN, learner.point)
    two = learner.trainer(limits=TrainingLimits(separation_s=0))(PLAN, learner.point)
    for name, change in one.change.items():
        np.testing.assert_array_equal(change, two.change[name])


def test_both_sides_are_trained_where_the_plan_says_so(learner: Learner) -> None:
    trained = learner.trainer()(replace(PLAN, trained="both"), learner.point)
    changed = {name[-1] for name, change in trained.change.items() if np.abs(change).max() > 0}
    assert changed == {"a", "b"}


def test_with_too_little_to_judge_by_nothing_is_sent(learner: Learner) -> None:
    with pytest.raises(NoGain, match=r"kept aside; it needs 1 and 1000"):
        learner.trainer(least=1000)(PLAN, learner.point)


def test_what_is_no_better_is_not_sent(learner: Learner, tmp_path: Path) -> None:
    learner.store.close()
    # Answers without rhyme: nothing is learned that holds for others.
    store = ExampleStore(tmp_path / "noise.sqlite3", clock=lambda: BEGAN + 100)
    store.grant()
    for number, example in enumerate(kept()):
        store.add(replace(example, answer=OPTIONS[number * 7 % 3]))
    learner.store = store
    plan = replace(PLAN, learning_rate=0.5)
    with pytest.raises(NoGain, match=r"worse|not shown better"):
        learner.trainer(level=0.01)(plan, learner.point)


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        (replace(RESTING, idle=None), "not_idle"),
        (replace(RESTING, charging=False), "not_charging"),
        (replace(RESTING, connectivity="metered"), "not_unmetered"),
    ],
)
def test_a_device_in_use_does_not_train(
    learner: Learner, conditions: Conditions, reason: str
) -> None:
    trainer = learner.trainer(conditions=FixedConditions(conditions))
    with pytest.raises(CascadeError, match=reason):
        trainer(PLAN, learner.point)


def test_a_device_that_is_taken_up_stops(learner: Learner) -> None:
    trainer = learner.trainer(conditions=Taken(), limits=TrainingLimits(steps_per_day=3))
    # Three steps are left of the day: at the fourth the books are looked at, and the state with it.
    with pytest.raises(Paused, match="stopped after 3 steps: not_idle"):
        trainer(PLAN, learner.point)
    # Laid down again, it goes on with the fourth, and ends as if nobody had taken it.
    steps: list[int] = []
    on = learner.trainer(watch=lambda what, done, _: what == "train LoRA" and steps.append(done))
    after = on(PLAN, learner.point)
    assert steps == list(range(4, PLAN.max_steps + 1))
    on.discard()
    at_once = learner.trainer()(PLAN, learner.point)
    for name, change in at_once.change.items():
        np.testing.assert_array_equal(after.change[name], change)


def test_training_that_is_told_to_stop_pauses(learner: Learner) -> None:
    steps: list[int] = []

    def watch(what: str, done: int, total: int) -> None:
        if what == "train LoRA":
            steps.append(done)
            if done == 8:
                trainer.stop()

    trainer = learner.trainer(watch=watch)
    with pytest.raises(Paused, match="stopped after 8 steps: stopped"):
        trainer(PLAN, learner.point)
    trainer.stop()  # too late, or too early: it is told again while it matters
    trainer(PLAN, learner.point)
    assert steps[8] == 9


def test_what_no_example_fits_is_told_before_a_round_is_joined(
    learner: Learner, tmp_path: Path
) -> None:
    assert learner.trainer().fit(PLAN, learner.point) == ""
    learner.store.close()
    store = ExampleStore(tmp_path / "long.sqlite3", clock=lambda: BEGAN + 100)
    store.grant()
    for example in kept():
        text = example.messages[0].content + " word" * 5000
        store.add(replace(example, messages=(Message("user", text),)))
    learner.store = store
    assert "is of what this adapter answers" in learner.trainer().fit(PLAN, learner.point)


def test_what_a_pause_keeps_goes_with_the_example_it_is_of(learner: Learner) -> None:
    with pytest.raises(Paused):
        learner.trainer(conditions=Taken(), limits=TrainingLimits(steps_per_day=3))(
            PLAN, learner.point
        )
    kept_in = learner.store.learning_dir
    assert learner.store.forget(request_ids=["nobody's"]) == 0
    assert (kept_in / "checkpoint").exists()
    forgotten = learner.store.examples()[0].request_id
    assert learner.store.forget(request_ids=[forgotten]) == 1
    assert not kept_in.exists()


def test_what_the_day_s_budget_allowed_is_used(learner: Learner) -> None:
    trainer = learner.trainer(limits=TrainingLimits(steps_per_day=12))
    assert trainer(PLAN, learner.point).examples > 0


def test_an_adapter_that_lacks_a_linear_is_refused(learner: Learner) -> None:
    names = sorted(learner.start.pairs)
    part = {name: learner.start.pairs[name] for name in names[1:]}
    start = replace(learner.start, pairs=part)
    tensors = {
        name: tensor
        for name, tensor in learner.point.tensors.items()
        if not name.startswith(names[0])
    }
    point = StartingPoint(learner.point.base_digest, start, tensors)
    with pytest.raises(InvalidInput, match="this bundle would train it"):
        learner.trainer()(PLAN, point)


@dataclass
class Round:
    """A registry, a store and a desk around the tiny bundle."""

    config: FederationConfig
    adapters: Adapters
    database: Database
    desk: Desk
    registry: Registry

    async def tick(self) -> None:
        coordinator = Coordinator(self.database, self.adapters, self.config, Approves())
        await coordinator.start()
        await coordinator.tick()


@pytest.fixture
def a_round(request: pytest.FixtureRequest, tiny: TinyBundle, tmp_path: Path) -> Iterator[Round]:
    trained = getattr(request, "param", "b")
    publisher, trust = SigningKey.generate(), TrustStore(tmp_path / "publisher")
    trust.pin("maker", publisher.public)
    path = write_adapter(
        tmp_path / "published",
        starting_pairs(tiny),
        name="start",
        base_digest=tiny.bundle.manifest.base_digest,
        signing_key=publisher,
    )
    registry = Registry(str(tmp_path / "registry"))
    config = FederationConfig(
        adapter=registry.publish(path, trust).artifact.digest,
        store=str(tmp_path / "rounds.sqlite3"),
        goal=1 if trained == "b" else 3,
        minimum=1,
        plan=PlanConfig(
            layers=2,
            trained=trained,
            learning_rate=0.05,
            batch=8,
            max_steps=24,
            clip_norm=10.0,
        ),
    )
    database, adapters = Database(config.store_url), Adapters(registry, publisher)
    yield Round(config, adapters, database, Desk(database, adapters, config), registry)
    database.close()


@pytest.fixture
def pinned(a_round: Round, tiny: TinyBundle, empty_home: Path) -> Callable[[], TrustStore]:
    """The device's home trusts whoever made the bundle and whoever leads the rounds."""

    def trust() -> TrustStore:
        store = TrustStore(home.trust_dir())
        store.pin("tests", tiny.key.public)
        key = a_round.adapters._key
        assert key is not None
        store.pin("maker", key.public)
        return store

    return trust


@pytest.mark.parametrize("a_round", ["both"], indirect=True)
def test_devices_of_different_ranks_take_part_in_one_round(
    a_round: Round, learner: Learner, pinned: Callable[[], TrustStore], tmp_path: Path
) -> None:
    trust, sent = pinned(), {}

    async def taken_part(profile: ClientProfile) -> None:
        await a_round.tick()
        for rank in (None, 3, 1):
            trainer = learner.trainer()
            participant = Participant(
                profile,
                learner.tiny.bundle.manifest.base_digest,
                trainer,
                trust=trust,
                limits=Limits(rank=rank),
                root=tmp_path / f"rank-{rank}",
            )
            assert (await participant.step()).outcome == "sent"
            await participant.close()
        sent.update(a_round.database.do_now(lambda tx: tx.all("SELECT place, bytes FROM updates")))
        await a_round.tick()

    delivery = Delivery(a_round.registry)
    with testing.cluster(artifacts=delivery, federation=a_round.desk) as cluster:
        asyncio.run(taken_part(cluster.profile))
    assert sorted(sent.values(), reverse=True) == [sent[place] for place in sorted(sent)]
    assert len(set(sent.values())) == 3, "each sends what its rank takes"
    done = next(
        each for each in a_round.database.do_now(lambda tx: recent(tx, 5)) if each.candidate_digest
    )
    assert (done.state, done.counted) == ("approved", 3)
    assert done.candidate_digest is not None
    candidate = a_round.adapters.read(done.candidate_digest)
    before = a_round.adapters.read(a_round.config.adapter)
    assert candidate.shapes == before.shapes, "at the rank that is served"
    changed = {
        name for name in before.tensors if (candidate.tensors[name] != before.tensors[name]).any()
    }
    assert {name[-1] for name in changed} == {"a", "b"}


async def test_a_device_of_lower_rank_declines_a_plan_for_the_whole(
    a_round: Round, learner: Learner, pinned: Callable[[], TrustStore]
) -> None:
    trust = pinned()
    await a_round.tick()
    with testing.cluster(artifacts=Delivery(a_round.registry), federation=a_round.desk) as cluster:
        participant = Participant(
            cluster.profile,
            learner.tiny.bundle.manifest.base_digest,
            learner.trainer(),
            trust=trust,
            limits=Limits(rank=2),
        )
        done = await participant.step()
        await participant.close()
    assert done.outcome == "declined"
    assert "rank 4 and no less, this device gives 2" in done.note


def test_a_device_takes_part_from_its_examples_to_a_candidate(
    a_round: Round, learner: Learner, pinned: Callable[[], TrustStore]
) -> None:
    trainer = learner.trainer()

    async def taken_part(profile: object) -> str:
        await a_round.tick()
        participant = Participant(
            profile,  # type: ignore[arg-type]
            learner.tiny.bundle.manifest.base_digest,
            trainer,
            trust=pinned(),
            allowance=learner.allowance(FixedConditions(RESTING), TrainingLimits()),
        )
        done = await participant.step()
        await participant.close()
        await a_round.tick()
        return f"{done.outcome} {done.note}".strip()

    delivery = Delivery(a_round.registry)
    with testing.cluster(artifacts=delivery, federation=a_round.desk) as cluster:
        assert asyncio.run(taken_part(cluster.profile)) == "sent"
    made = next(
        each for each in a_round.database.do_now(lambda tx: recent(tx, 5)) if each.candidate_digest
    )
    assert (made.state, made.counted) == ("approved", 1)
    assert made.candidate_digest is not None
    candidate = a_round.adapters.read(made.candidate_digest)
    before = a_round.adapters.read(a_round.config.adapter)
    session, pairs = open_training(learner.tiny.bundle, None)
    row = {"prompt": "a new text", "answer": "blue", "options": list(OPTIONS)}
    lesson = LessonMaker(learner.tiny.bundle).lesson(example_of(row))
    losses = []
    for adapter in (before, candidate):
        tensors = adapter.tensors
        pairs = {
            name.removesuffix(".a"): LoraPair(tensors[name], tensors[f"{name[:-1]}b"])
            for name in tensors
            if name.endswith(".a")
        }
        losses.append(session.run([lesson], pairs).loss)
    assert losses[1] < 0.7 * losses[0]


def test_the_command_takes_part(
    a_round: Round,
    learner: Learner,
    pinned: Callable[[], TrustStore],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pinned()
    words = ["federation", "participate", "--bundle", str(learner.tiny.path), "--once", "--json"]
    words += ["--examples", str(learner.store.path), "--profile", str(tmp_path / "profile.json")]
    asyncio.run(a_round.tick())
    delivery = Delivery(a_round.registry)
    with testing.cluster(artifacts=delivery, federation=a_round.desk) as cluster:
        cluster.profile.save(tmp_path / "profile.json")
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out)["outcome"] == "not_ready"
        resting = ["--idle", "--charging", "--unmetered"]
        assert main([*words, *resting]) == 0
        told = capsys.readouterr()
        assert json.loads(told.out)["outcome"] == "sent"
        # What takes minutes with a real model is not silent.
        for stage in ("read examples for LoRA: 60", "train LoRA", "compare with the parent"):
            assert stage in told.err
        words.remove("--json")
        (home.home() / "federation").rename(
            tmp_path / "before"
        )  # no coordinator's word to wait for
        assert main([*words, *resting]) == 0
        assert "its last round was too short a time ago (--separation-s)" in (
            said := capsys.readouterr().out
        )
        assert "again in 6 h 0 min" in said or "again in 5 h" in said
    assert a_round.database.do_now(counters)["committed"] == 1


def test_what_is_to_be_learned_is_chosen_once_for_the_same_examples(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []

    def counted(*given: object) -> Curated:
        chosen.append(curate(*given))  # type: ignore[arg-type]
        return chosen[-1]

    monkeypatch.setattr("edge.federation.example_trainer.curate", counted)
    trainer = learner.trainer()
    assert trainer.ready() == trainer.ready() == ""
    assert trainer.fit(PLAN, learner.point) == ""
    trainer(PLAN, learner.point)
    assert len(chosen) == 1
    assert trainer.ready() == ""
    learner.store.forget(request_ids=["r0"])
    assert trainer.ready() == ""
    everything = len(chosen[-2].learn) + len(chosen[-2].held_out)
    assert len(chosen[-1].learn) + len(chosen[-1].held_out) == everything - 1
    learner.store.withdraw()
    assert "0 examples to learn from" in trainer.ready()
    assert len(chosen) == 4


def test_too_few_examples_cost_no_round(
    a_round: Round, learner: Learner, pinned: Callable[[], TrustStore], tmp_path: Path
) -> None:
    """A round that is joined counts for hours; one that could come to nothing is not joined."""
    trust = pinned()
    store = ExampleStore(tmp_path / "few.sqlite3")
    store.grant()
    allowance = learner.allowance(FixedConditions(RESTING), TrainingLimits())
    trainer = ExampleTrainer(learner.tiny.bundle, store, allowance)

    async def step(profile: ClientProfile) -> Step:
        await a_round.tick()
        device = Participant(
            profile,
            learner.tiny.bundle.manifest.base_digest,
            trainer,
            trust=trust,
            allowance=allowance,
            ready=trainer.ready,
        )
        try:
            return await device.step()
        finally:
            await device.close()

    with testing.cluster(artifacts=Delivery(a_round.registry), federation=a_round.desk) as cluster:
        done = asyncio.run(step(cluster.profile))
    assert done.outcome == "not_ready"
    assert done.note == "0 examples to learn from and 0 kept aside; it needs 1 and 1"
    assert "leased" not in a_round.database.do_now(counters)
    assert allowance.may_train(participate=True).allowed
