"""A tiny fleet, with everything that the product has: real sockets, store, registry, training."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from cascade.errors import InvalidInput
from cascade.task import Task, generic
from cascade.testing import TinyBundle
from cloud.federation.config import AggregationConfig, PlanConfig
from cloud.federation.privacy import NoisedRounds, epsilon, usual_delta
from cloud.fleet import (
    Attackers,
    BundleAt,
    FleetPlan,
    FleetResult,
    FleetRow,
    FleetSimulation,
    Partition,
    parts,
)
from cloud.fleet.page import html_page, summary

OPTIONS = ("red", "green", "blue")
WORDS = ("house", "river", "light")
TRAINING = PlanConfig(layers=2, learning_rate=0.05, batch=8, max_steps=16, clip_norm=20.0)
PLAN = FleetPlan(
    devices=3,
    rounds=2,
    per_round=40,
    minimum=1,
    least=3,
    level=0.5,
    rank=4,
    epochs=12,
    alpha=0.35,
    training=TRAINING,
)


def rows(count: int = 400, outside: int = 20) -> list[FleetRow]:
    """The last word says which colour: something that a tiny model can learn."""
    made = []
    for number in range(count + outside):
        place = number % len(WORDS)
        answer = "" if number >= count else OPTIONS[place % len(OPTIONS)]
        text = f"{number} is {WORDS[place]}"
        made.append(FleetRow(str(number), text, answer, group=f"g{number % 2}"))
    return made


def task() -> Task:
    return replace(generic(OPTIONS), task_id="colours")


def simulated(plan: FleetPlan, tiny: TinyBundle, folder: Path) -> FleetResult:
    simulation = FleetSimulation(
        folder,
        plan,
        task(),
        tiny.bundle,
        BundleAt(tiny.path, tiny.path.parent / "trust"),
        rows=parts(rows(), seed=plan.seed, most=30),
        trunk=folder.parent / "trunk",
    )
    try:
        for _ in simulation.run():
            pass
        return simulation.result()
    finally:
        simulation.close()


def untimed(result: FleetResult) -> list[dict[str, object]]:
    return [{k: v for k, v in asdict(each).items() if k != "seconds"} for each in result.rounds]


def test_a_fleet_learns_what_its_users_say(tiny: TinyBundle, tmp_path: Path) -> None:
    # Updates are rounded at random: a bit more or less in a gradient is another fleet by the second
    # round, and by the third each one has learned.
    result = simulated(replace(PLAN, rounds=3), tiny, tmp_path / "fleet")
    start, *_, last = result.rounds
    assert result.complete
    assert [each.round for each in result.rounds] == [0, 1, 2, 3]
    assert start.version == 1
    assert last.version > 1
    assert last.accuracy > start.accuracy + 0.1
    assert last.escalation < 1
    assert last.risk is not None
    assert last.out_of_scope is not None
    assert sum(result.rounds[1].outcomes.values()) == 3
    assert result.rounds[1].updates == result.rounds[1].outcomes["sent"]
    assert result.rounds[1].bytes_up > 0
    assert result.rounds[1].bytes_down > 0
    assert result.rounds[1].aggregation_error == pytest.approx(0, abs=1e-5)
    assert not result.rounds[1].refused
    assert result.parts["test"] == 45


def test_a_fleet_of_mixed_ranks_takes_part_in_one_round(tiny: TinyBundle, tmp_path: Path) -> None:
    mixed = replace(PLAN, ranks=(1, 2, 4), training=TRAINING.model_copy(update={"trained": "both"}))
    result = simulated(mixed, tiny, tmp_path / "mixed")
    whole = simulated(replace(mixed, ranks=None, rounds=1), tiny, tmp_path / "whole")
    assert result.rounds[1].updates == whole.rounds[1].updates == 3
    assert result.rounds[1].bytes_up < 0.75 * whole.rounds[1].bytes_up
    error = result.rounds[1].aggregation_error
    assert error is not None
    assert 0 < error < 0.5
    assert result.rounds[-1].version == 3
    for problem, given in (
        ("must be one or more of 1 … 4", {"ranks": (8,)}),
        ("need training of both", {"ranks": (2,), "training": TRAINING}),
    ):
        with pytest.raises(InvalidInput, match=problem):
            replace(mixed, **given)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_fleet(tiny: TinyBundle, tmp_path: Path) -> None:
    plan = replace(PLAN, dropout=0.3, rounds=1, attackers=Attackers(0.34, "sign-flip"))
    one = simulated(plan, tiny, tmp_path / "one")
    two = simulated(plan, tiny, tmp_path / "two")
    assert untimed(one) == untimed(two)
    other = simulated(replace(plan, seed=1), tiny, tmp_path / "other")
    assert untimed(other) != untimed(one)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nan", "not_finite"),
        ("wrong-base", "wrong_base"),
        ("rank-bomb", "wrong_shape"),
        ("stale", "wrong_adapter"),
        ("replay", "replayed"),
    ],
)
def test_what_must_not_count_is_refused_by_its_reason(
    kind: str, reason: str, tiny: TinyBundle, tmp_path: Path
) -> None:
    plan = replace(PLAN, rounds=1, attackers=Attackers.of(f"0.34:{kind}"))
    result = simulated(plan, tiny, tmp_path / "fleet")
    assert result.rounds[1].refused == {reason: 1}
    assert result.rounds[1].updates == (3 if kind == "replay" else 2)
    honest = simulated(replace(plan, attackers=Attackers()), tiny, tmp_path / "honest").rounds[1]
    assert honest.bytes_up_each == honest.bytes_up / 3, "all that was sent was taken"
    assert result.rounds[1].bytes_up_each == honest.bytes_up_each, "what was refused is no update's"


def test_an_update_that_was_cut_off_counts_later_only_where_rounds_are_asynchronous(
    tiny: TinyBundle, tmp_path: Path
) -> None:
    plan = replace(PLAN, dropout=0.6, seed=3)
    late = simulated(plan, tiny, tmp_path / "synchronous")
    cut_off = late.rounds[1].outcomes.get("unsent", 0)
    assert cut_off, "the seed is chosen so that one is"
    buffered = simulated(
        replace(plan, mode="asynchronous", goal=1), tiny, tmp_path / "asynchronous"
    )
    assert late.rounds[2].updates == late.rounds[2].outcomes["sent"]
    assert buffered.rounds[2].updates == buffered.rounds[2].outcomes["sent"] + cut_off


def test_noise_is_accounted_for(tiny: TinyBundle, tmp_path: Path) -> None:
    plan = replace(PLAN, aggregation=AggregationConfig(noise_multiplier=1.0), most_worse=1.0)
    result = simulated(plan, tiny, tmp_path / "fleet")
    spent = [each.epsilon for each in result.rounds]
    assert spent[0] is None
    assert spent[1] is not None
    assert spent[2] is not None
    assert 0 < spent[1] < spent[2]
    assert result.rounds[1].delta == pytest.approx(3**-1.1)
    told = f"ε {spent[2]:.2g} of all rounds, at δ 0.3."
    assert told in summary(result)
    assert told in html_page(result)
    how = result.plan["aggregation"]
    assert isinstance(how, dict)
    assert how["delta"] == result.rounds[1].delta
    assert PLAN.to_json()["aggregation"] == AggregationConfig().model_dump()


def test_a_budget_ends_a_fleet_that_would_spend_more(tiny: TinyBundle, tmp_path: Path) -> None:
    def spent(rounds: int) -> float:
        return epsilon([NoisedRounds(rounds, 0.7)], usual_delta(PLAN.devices))

    how = AggregationConfig(noise_multiplier=0.7, most_epsilon=(spent(2) + spent(3)) / 2)
    plan = replace(PLAN, rounds=4, aggregation=how, most_worse=1.0)
    result = simulated(plan, tiny, tmp_path / "fleet")
    assert [each.round for each in result.rounds] == [0, 1, 2]
    assert result.rounds[-1].epsilon == pytest.approx(spent(2))
    assert result.rounds[-1].verdict == "approved"
    assert not result.complete
    assert result.ended.startswith(f"one more round would make ε {spent(3):.3g}")
    assert f"No further round was opened: {result.ended}." in summary(result)
    none = replace(
        plan, aggregation=AggregationConfig(noise_multiplier=0.7, most_epsilon=spent(1) / 2)
    )
    assert [each.round for each in simulated(none, tiny, tmp_path / "none").rounds] == [0]


@pytest.mark.parametrize("kind", ["dirichlet:0.3", "by-group", "iid"])
def test_every_row_has_one_owner(kind: str) -> None:
    owners = Partition.of(kind).share_out(rows(outside=0), 4, seed=0)
    owned = [row.id for mine in owners for row in mine]
    assert sorted(owned, key=int) == [str(number) for number in range(400)]
    if kind == "by-group":
        assert all(len({row.group for row in mine}) == 1 for mine in owners)


def test_a_small_alpha_makes_devices_differ() -> None:
    def spread(alpha: float) -> float:
        owners = Partition("dirichlet", alpha).share_out(rows(3000, 0), 10, seed=0)
        shares = [np.mean([row.answer == "red" for row in mine]) for mine in owners if mine]
        return float(np.std(shares))

    assert spread(0.1) > 2 * spread(100)


def test_parts_share_no_document_and_no_text() -> None:
    given = [replace(row, document=str(int(row.id) // 3)) for row in rows()]
    made = parts(given, seed=0)
    seen: dict[str, str] = {}
    for name in ("develop", "certify", "test", "fleet"):
        for row in getattr(made, name):
            assert seen.setdefault(row.document, name) == name


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (AggregationConfig(rule="krum"), "krum needs 5 updates"),
        (AggregationConfig(rule="trimmed_mean"), "trim 0.1 leaves nothing of 2 updates"),
    ],
)
def test_a_rule_needs_as_many_updates_as_it_goes_by(how: AggregationConfig, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        replace(PLAN, devices=8, minimum=2, aggregation=how)
    replace(PLAN, devices=8, minimum=5, aggregation=how)
