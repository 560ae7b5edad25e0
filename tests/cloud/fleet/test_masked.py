"""Fleets whose updates are summed under masks, with devices that are lost in every phase."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade.cli import main
from cascade.errors import InvalidInput
from cascade.federation import Tensors, flatten
from cascade.testing import TinyBundle
from cloud.federation.adapters import Adapters
from cloud.federation.config import AggregationConfig
from cloud.fleet import Attackers, FleetPlan, FleetResult
from cloud.fleet.page import html_page, summary, table
from cloud.registry import Registry
from edge.federation import participant
from tests.cloud.fleet import test_heads, test_simulation
from tests.cloud.fleet.test_simulation import untimed

HEADS = replace(test_heads.PLAN, devices=5, rounds=1, per_round=45, masked=True)


def adapter(folder: Path, digest: str) -> Tensors:
    return Adapters(Registry(str(folder / "registry"))).read(digest).tensors


@pytest.fixture
def vectors(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What devices put masks on."""
    seen: list[np.ndarray] = []

    def looked_at(change: Tensors) -> np.ndarray:
        seen.append(flatten(change))
        return seen[-1]

    monkeypatch.setattr(participant, "flatten", looked_at)
    return seen


def test_a_sum_of_heads_is_the_devices_rounded_updates(
    tiny: TinyBundle, tmp_path: Path, vectors: list[np.ndarray]
) -> None:
    last = test_heads.simulated(HEADS, tiny, tmp_path / "fleet").rounds
    assert len(vectors) == last[1].updates == 5
    start, made = (adapter(tmp_path / "fleet", each.adapter) for each in last)
    moved = flatten({name: made[name] - start[name] for name in ("head.bias", "head.weight")})
    step = HEADS.training.clip_norm / 1023
    assert np.abs(moved).max() > step
    assert np.abs(moved - np.mean(vectors, axis=0)).max() < step
    assert last[1].bytes_up > 5 * 2 * moved.size, "masked words, and what masks take"
    assert last[1].bytes_up_each == last[1].bytes_up / 5


def test_a_sum_of_lora_is_the_devices_rounded_updates(
    tiny: TinyBundle, tmp_path: Path, vectors: list[np.ndarray]
) -> None:
    plan = replace(test_simulation.PLAN, rounds=1, masked=True, most_worse=1.0, devices=4)
    folder = tmp_path / "fleet"
    result = test_simulation.simulated(plan, tiny, folder)
    start, last = (adapter(folder, each.adapter) for each in result.rounds)
    assert len(vectors) == result.rounds[1].updates >= 3
    moved = flatten({name: last[name] - start[name] for name in last if name.endswith(".b")})
    step = plan.training.clip_norm / 1023
    assert np.abs(moved).max() > step
    assert np.abs(moved - np.mean(vectors, axis=0)).max() < step
    assert all((last[name] == start[name]).all() for name in last if name.endswith(".a"))


def test_devices_are_lost_in_every_phase(tiny: TinyBundle, tmp_path: Path) -> None:
    plan = replace(HEADS, devices=12, per_round=30, dropout=0.4, seed=72)
    given = test_heads.rows(1000)
    result = test_heads.simulated(plan, tiny, tmp_path / "one", given)
    last = result.rounds[1]
    assert last.lost == {"off": 1, "after_keys": 1, "cut_off": 1, "after_update": 1}, "by the seed"
    assert last.verdict == "approved"
    assert last.updates == 9, "the update of the one that was lost after it is in the sum"
    assert last.outcomes == {"off": 1, "sent": 8, "unsent": 3}
    assert "summed under masks" in summary(result)
    assert "devices lost to a round: 4;" in summary(result)
    assert "rounds abandoned: 0 of 1." in html_page(result)
    assert "lost" in table(result)[0]
    again = test_heads.simulated(plan, tiny, tmp_path / "two", given)
    assert untimed(result) == untimed(again), "masks leave no trace in a sum"


def test_with_too_few_nothing_is_unmasked(tiny: TinyBundle, tmp_path: Path) -> None:
    plan = replace(HEADS, rounds=2, mask_threshold=5, dropout=0.5)
    start, *others = test_heads.simulated(plan, tiny, tmp_path / "fleet").rounds
    assert [each.verdict for each in others] == ["abandoned", "abandoned"]
    assert all("nothing was unmasked" in each.note for each in others)
    assert {each.adapter for each in others} == {start.adapter}
    assert others[1].outcomes.keys() <= {"sent", "unsent", "failed", "off"}, "they come again"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("wrong-base", "wrong_base"),
        ("rank-bomb", "wrong_shape"),
        ("stale", "wrong_adapter"),
        ("replay", "replayed"),
    ],
)
def test_what_must_not_count_is_refused_under_masks_too(
    kind: str, reason: str, tiny: TinyBundle, tmp_path: Path
) -> None:
    plan = replace(HEADS, attackers=Attackers.of(f"0.2:{kind}"))
    last = test_heads.simulated(plan, tiny, tmp_path / "fleet").rounds[1]
    assert last.refused == {reason: 1}
    assert last.updates == (5 if kind == "replay" else 4)
    assert last.verdict == "approved"


def test_masks_hide_a_liar(tiny: TinyBundle, tmp_path: Path) -> None:
    """Ten times an update, backwards, is in the sum; nobody sees it."""

    def after(plan: FleetPlan, name: str) -> tuple[FleetResult, np.ndarray]:
        found = test_heads.simulated(plan, tiny, tmp_path / name)
        start, last = (flatten(adapter(tmp_path / name, r.adapter)) for r in found.rounds)
        return found, last - start

    _, honest = after(HEADS, "honest")
    attacked, moved = after(replace(HEADS, attackers=Attackers.of("0.2:sign-flip")), "attacked")
    _, larger = after(replace(HEADS, attackers=Attackers.of("0.2:scale")), "larger")
    assert attacked.rounds[1].updates == 5
    assert not attacked.rounds[1].refused
    lie = (larger - moved) / 20  # 10 u − (−10 u)
    assert np.linalg.norm(lie) > 0
    assert np.abs(moved + 11 * lie - honest).max() < 1e-2 * np.abs(moved).max()


def test_noise_goes_on_the_sum(tiny: TinyBundle, tmp_path: Path) -> None:
    plan = replace(HEADS, aggregation=AggregationConfig(noise_multiplier=1.0))
    last = test_heads.simulated(plan, tiny, tmp_path / "fleet").rounds[1]
    assert last.epsilon is not None
    assert last.epsilon > 0
    assert last.updates == 5


def test_noise_goes_on_a_sum_of_lora(tiny: TinyBundle, tmp_path: Path) -> None:
    """As much as was asked for: of one clip norm on the sum, on each of its numbers."""
    plan = replace(test_simulation.PLAN, rounds=1, masked=True, most_worse=1.0, devices=4)
    moved = {}
    for name, noise in (("bare", None), ("noised", 1.0)):
        how = replace(plan, aggregation=AggregationConfig(noise_multiplier=noise))
        found = test_simulation.simulated(how, tiny, tmp_path / name).rounds
        assert found[1].verdict == "approved"
        start, last = (adapter(tmp_path / name, each.adapter) for each in found)
        moved[name] = flatten({n: last[n] - start[n] for n in last if n.endswith(".b")})
    assert found[1].epsilon is not None
    assert found[1].epsilon > 0
    # The sum with noise is divided by the goal; the bare one by those that took part.
    added = moved["noised"] - moved["bare"] * found[1].updates / 4
    assert np.std(added) == pytest.approx(plan.training.clip_norm / 4, rel=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rule", "median"], "needs --rule mean, not median"),
        (["--strategy", "product"], "needs --strategy ffa, not product"),
        (["--mode", "async"], "needs --mode sync, not async"),
        (["--bits", "4"], "leave it out with --masked"),
        (["--byzantine", "0.2:nan"], "take another kind, or leave --masked out"),
        (["--devices", "2"], "must be 3 to 1024 under masks"),
        (["--devices", "9", "--mask-threshold", "4"], "must be 5 to 9"),
    ],
)
def test_what_masks_cannot_do_is_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fleet", "simulate", "--masked", "--out", str(tmp_path / "out"), *options]
    assert main(command) == InvalidInput("masked", "").exit_code
    assert said in capsys.readouterr().err


def test_a_threshold_is_of_masks() -> None:
    with pytest.raises(InvalidInput, match="is for masked rounds"):
        replace(HEADS, masked=False, mask_threshold=3)
    with pytest.raises(InvalidInput, match="synchronous mode"):
        replace(HEADS, mode="asynchronous")
    assert HEADS.masks is not None
    assert HEADS.masks.threshold == 3
