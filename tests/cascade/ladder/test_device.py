"""A device follows an installed ladder: a real device, and a cluster that climbs the same file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cascade import testing
from cascade.checks import Checks
from cascade.confidence import ConfidenceModel, Platt
from cascade.decision_record import DecisionRecord, replay_decision
from cascade.errors import InvalidInput, Tampered
from cascade.events import DEVICE, Answer, Event, Final
from cascade.ladder import Ladder, LadderPolicy
from cascade.ladder.device import DeviceRung
from cascade.monitor import Monitor, MonitorStore
from cascade.policy import Reason
from cascade.records import TierInfo
from cascade.request import Constraints
from cascade.task import generic
from cascade.testing import Fault, Script, TinyBundle, tiny_bundle
from edge import Device

MOODS = ("good", "bad")
THREE = ("device", "tier1", "tier2")
NEVER = 2.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


def other(text: str) -> str:
    return MOODS[text == MOODS[0]]


class Followers:
    """A device and a cluster that follow one ladder, whose confidences are the raw scores."""

    def __init__(self, bundle: TinyBundle, **tiers: Script) -> None:
        self.bundle = bundle
        self.tiers = {name: tiers.get(name, Script()) for name in ("tier1", "tier2")}
        self.records: list[DecisionRecord] = []
        self.asked: dict[str, int] = {}

    def policy(
        self, *names: str, way: str, at: tuple[float, ...], skip: float = 0.0
    ) -> LadderPolicy:
        infos = tuple(
            TierInfo(
                name,
                "tiny" if name == DEVICE else "scripted",
                "device" if name == DEVICE else "cloud",
                base_digest=self.bundle.bundle.manifest.base_digest if name == DEVICE else "",
            )
            for name in names
        )
        return LadderPolicy(
            "mood",
            infos,
            "",
            Ladder(names, way, at, skip),  # type: ignore[arg-type]
            dict.fromkeys(names, ConfidenceModel(Platt(1.0, 0.0))),
            None,
            dataclasses.replace(generic(MOODS), task_id="mood"),
        )

    def events(self, policy: LadderPolicy, *, known: bool = True, **how: object) -> list[Event]:
        self.bundle.policies.install(DeviceRung.of(policy), self.bundle.key)
        constraints = Constraints(**{"max_remote_calls": 3, **how.pop("limits", {})})  # type: ignore
        ladders = (policy,) if known else ()
        with (
            testing.cluster(self.tiers, ladders=ladders) as cluster,
            Device.open(
                self.bundle.path,
                trust=self.bundle.trust,
                policies=self.bundle.policies,
                cloud=cluster.profile,
                checks=Checks({"long": lambda text: len(text) > 9}),
                on_decision=self.records.append,
            ) as device,
        ):
            answer = device.choose(
                "What a day.", MOODS, task="mood", constraints=constraints, **how
            )
            self.asked = {name: len(cluster.asked(name)) for name in self.tiers}
            return [Final(answer)]

    def answer(self, policy: LadderPolicy, **how: object) -> Answer:
        final = self.events(policy, **how)[-1]
        assert isinstance(final, Final)
        return final.answer


@pytest.fixture(scope="module")
def local(bundle: TinyBundle) -> Answer:
    """What the device says by itself."""
    with Device.open(bundle.path, trust=bundle.trust) as device:
        return device.choose("What a day.", MOODS)


def test_a_sure_answer_stays(bundle: TinyBundle, local: Answer) -> None:
    both = Followers(bundle)
    answer = both.answer(both.policy(*THREE, way="climb", at=(0.0, 0.5)))
    assert (answer.source, answer.text, answer.verified) == (DEVICE, local.text, True)
    assert answer.reasons == (Reason.CONFIDENT,)
    assert answer.confidence == pytest.approx(local.raw_score)
    assert both.asked == {"tier1": 0, "tier2": 0}


def test_a_monitor_does_not_watch_a_ladder(bundle: TinyBundle, tmp_path: Path) -> None:
    both, file = Followers(bundle), tmp_path / "monitor.sqlite"
    policy = both.policy(*THREE, way="climb", at=(0.0, 0.5))
    bundle.policies.install(DeviceRung.of(policy), bundle.key)
    monitor = Monitor.open(file, tier_error=0.0, share=1.0)
    with (
        testing.cluster(both.tiers, ladders=(policy,)) as cluster,
        Device.open(
            bundle.path,
            trust=bundle.trust,
            policies=bundle.policies,
            cloud=cluster.profile,
            monitor=monitor,
        ) as device,
    ):
        assert device.choose("What a day.", MOODS, task="mood").verified
        assert device.to_grade() == []
        assert len(cluster.asked("tier1")) == 0
    assert MonitorStore(file).monitors() == []


def test_an_unsure_one_climbs_as_far_as_need_be(bundle: TinyBundle) -> None:
    both = Followers(bundle, tier1=Script("bad", score=0.6), tier2=Script("good"))
    policy = both.policy(*THREE, way="climb", at=(NEVER, 0.5))
    answer = both.answer(policy)
    assert (answer.source, answer.text, answer.verified) == ("tier1", "bad", True)
    assert answer.reasons == (Reason.UNSURE, "tier1:confident")
    answer = both.answer(both.policy(*THREE, way="climb", at=(NEVER, 0.9)))
    assert (answer.source, answer.text) == ("tier2", "good")
    assert answer.reasons == (Reason.UNSURE, "tier1:unsure", "tier2:last")
    assert answer.tokens == 1
    assert answer.cloud_completion_tokens == 2


def test_the_decision_replays_from_its_record(bundle: TinyBundle) -> None:
    both = Followers(bundle)
    policy = both.policy(*THREE, way="climb", at=(NEVER, 0.9))
    both.answer(policy)
    (record,) = both.records
    assert DecisionRecord.from_bytes(record.to_bytes()) == record
    assert record.decision == replay_decision(record, DeviceRung.of(policy))
    assert record.constraints.allowed_tiers == {"tier1", "tier2"}


def test_the_least_sure_skip(bundle: TinyBundle) -> None:
    both = Followers(bundle)
    policy = both.policy(*THREE, way="climb", at=(NEVER, 0.9), skip=1.0)
    assert both.answer(policy).reasons == (Reason.UNSURE, "device:skip", "tier2:last")
    # A cluster that does not know the ladder is told where to begin.
    answer = both.answer(policy, known=False)
    assert answer.source == "tier2"
    assert both.asked == {"tier1": 0, "tier2": 1}


def test_a_vote_counts_the_devices_answer(bundle: TinyBundle, local: Answer) -> None:
    both = Followers(bundle, tier1=Script(local.text))
    policy = both.policy(*THREE, way="vote", at=(NEVER,))
    answer = both.answer(policy)
    assert (answer.source, answer.text, answer.verified) == (DEVICE, local.text, True)
    assert answer.reasons == (Reason.UNSURE, "tier1:agree")
    assert answer.model == "tiny"
    assert both.asked == {"tier1": 1, "tier2": 0}
    both.tiers["tier1"] = Script(other(local.text))
    answer = both.answer(policy)
    assert answer.reasons == (Reason.UNSURE, "tier1:disagree", "tier2:last")


def test_the_surer_of_device_and_tier(bundle: TinyBundle, local: Answer) -> None:
    for score, source in ((0.999, "tier1"), (0.001, DEVICE)):
        both = Followers(bundle, tier1=Script(other(local.text), score=score))
        answer = both.answer(both.policy("device", "tier1", way="best", at=(NEVER,)))
        assert answer.source == source
        assert answer.text == (local.text if source == DEVICE else other(local.text))
        assert answer.reasons == (Reason.UNSURE, f"{source}:surer")
        assert answer.bytes_up > 0


def test_an_answer_that_failed_a_check_is_not_taken(bundle: TinyBundle, local: Answer) -> None:
    both = Followers(bundle, tier1=Script(local.text))
    policy = both.policy("device", "tier1", way="best", at=(0.0,))
    answer = both.answer(policy, checks=("long",))
    assert answer.source == "tier1"
    assert answer.reasons == (Reason.CONFIDENT, "veto:long", "tier1:surer")


def test_limits_of_the_request_come_before_the_ladder(bundle: TinyBundle) -> None:
    both = Followers(bundle, tier1=Script("bad", score=0.1))
    policy = both.policy(*THREE, way="climb", at=(NEVER, 0.9))
    answer = both.answer(policy, limits={"allowed_tiers": frozenset({"tier1"})})
    assert answer.source == "tier1"
    assert answer.reasons == (
        Reason.UNSURE,
        "tier1:unsure",
        "tier2:not_allowed",
        "tier1:best_there_is",
    )
    answer = both.answer(policy, limits={"max_remote_calls": 0})
    assert answer.reasons == (Reason.UNSURE, Reason.NO_TIER_ALLOWED)
    assert both.asked == {"tier1": 0, "tier2": 0}


def test_a_cluster_that_fails_leaves_the_local_answer(bundle: TinyBundle, local: Answer) -> None:
    down = Script(fault=Fault("UNAVAILABLE"))
    both = Followers(bundle, tier1=down, tier2=down)
    answer = both.answer(both.policy(*THREE, way="climb", at=(NEVER, 0.9)))
    assert (answer.source, answer.text, answer.verified) == (DEVICE, local.text, False)
    assert answer.reasons == (Reason.UNSURE, Reason.REMOTE_FAILED)
    assert sum(both.asked.values()) == 2


@pytest.fixture
def policy(bundle: TinyBundle) -> LadderPolicy:
    return Followers(bundle).policy(*THREE, way="climb", at=(0.5, 0.9))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ladder": Ladder(("tier1", "tier2"), "climb", (0.5,))}, "begins with tier1"),
        ({"ladder": Ladder(("device",))}, "has no tier above the device"),
        ({"confidence": {}}, "has no model for device"),
        ({"wording": None}, "is missing"),
        (
            {"tiers": tuple(TierInfo(n, "m", "device" if n == DEVICE else "cloud") for n in THREE)},
            "base_digest",
        ),
    ],
)
def test_what_no_device_can_follow_is_refused(
    policy: LadderPolicy, changes: dict[str, object], problem: str
) -> None:
    with pytest.raises(InvalidInput, match=problem):
        DeviceRung.of(dataclasses.replace(policy, **changes))  # type: ignore[arg-type]


def test_a_ladder_reads_back_as_it_was_written(policy: LadderPolicy) -> None:
    assert LadderPolicy.from_bytes(policy.to_bytes()) == policy
    assert DeviceRung.of(policy).to_bytes() == policy.to_bytes()


def test_an_altered_ladder_is_not_followed(
    bundle: TinyBundle, policy: LadderPolicy, tmp_path: Path
) -> None:
    from cascade.policy import PolicyStore

    store = PolicyStore(tmp_path, bundle.trust)
    path = store.install(DeviceRung.of(policy), bundle.key)
    path.write_bytes(path.read_bytes().replace(b"0.9", b"0.1"))
    with (
        Device.open(bundle.path, trust=bundle.trust, policies=store) as device,
        pytest.raises(Tampered),
    ):
        device.choose("What a day.", MOODS, task="mood")
