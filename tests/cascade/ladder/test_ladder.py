"""Ladders: what each way does, row by row; the search; and certificates that hold."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

from cascade.confidence import ConfidenceModel, Platt
from cascade.errors import InvalidInput, PolicyMismatch
from cascade.files import sha256_bytes
from cascade.ladder import (
    Ladder,
    LadderPolicy,
    LadderRows,
    Scored,
    describe,
    is_ladder,
    ladder_rows,
    pareto_front,
    read_objective,
    score,
    search,
)
from cascade.ladder.pareto import _front
from cascade.records import from_columns
from tests.cascade.drawn_records import drawn, header

THREE = ("device", "tier1", "tier2")
ALL = drawn(60_000, tiers=THREE, seed=11)


def five_rows() -> LadderRows:
    """Answers 1 are right; tier1 disagrees with the device on the rows 1, 3 and 4."""
    answer = np.array([[1, 0, 0, 1, 0], [1, 1, 0, 0, 1], [1, 1, 1, 1, 0]])
    return LadderRows(
        tiers=THREE,
        records=drawn(5, tiers=THREE),
        remote=np.array([False, True, True]),
        score=np.full((3, 5), 0.5),
        correct=answer == 1,
        answer=answer,
        latency_s=np.array([[1.0] * 5, [2.0] * 5, [4.0] * 5]),
        cost_usd=np.array([[0.0] * 5, [1.0] * 5, [10.0] * 5]),
        left_out=0,
    )


CONFIDENCE = {
    "device": np.array([0.9, 0.6, 0.6, 0.6, 0.1]),
    "tier1": np.array([0.5, 0.8, 0.4, 0.5, 0.9]),
}


@pytest.mark.parametrize(
    ("ladder", "taken", "asked"),
    [
        (Ladder(("device",)), "ddddd", "d d d d d"),
        (Ladder(("tier2",)), "22222", "2 2 2 2 2"),
        (Ladder(THREE, "climb", (0.7, 0.7)), "d1221", "d d1 d12 d12 d1"),
        (Ladder(THREE, "climb", (0.7, 0.7), 0.2), "d1222", "d d1 d12 d12 d2"),
        (Ladder(("device", "tier2"), "climb", (0.7,)), "d2222", "d d2 d2 d2 d2"),
        (Ladder(("device", "tier1"), "vote", (0.7,)), "d1dd1", "d d1 d1 d1 d1"),
        (Ladder(THREE, "vote", (0.7,)), "d2d22", "d d12 d1 d12 d12"),
        (Ladder(("device", "tier1"), "best", (0.7,)), "d1dd1", "d d1 d1 d1 d1"),
        (Ladder(("device", "tier1"), "best", (2.0,)), "d1dd1", "d1 d1 d1 d1 d1"),
    ],
)
def test_where_each_row_ends(ladder: Ladder, taken: str, asked: str) -> None:
    rows = five_rows()
    found = ladder.follow(rows, CONFIDENCE)
    names = "d12"
    assert "".join(names[i] for i in found.place) == taken
    shown = ["".join(itertools.compress(names, column)) for column in found.asked.T]
    assert " ".join(shown) == asked
    dollars = {"d": 0.0, "1": 1.0, "2": 10.0}
    assert found.cost_usd(rows).tolist() == [sum(dollars[each] for each in row) for row in shown]
    assert found.left(rows).tolist() == [row != "d" for row in shown]


def test_the_figures_of_a_ladder() -> None:
    rows = five_rows()
    found = score(rows, Ladder(THREE, "climb", (0.7, 0.7)).follow(rows, CONFIDENCE))
    # Right: the device on row 0, tier1 on 1 and 4, tier2 on 2 and 3.
    assert found["accuracy"] == 1
    assert found["cost"] == pytest.approx((0 + 1 + 11 + 11 + 1) / 5)
    assert (found["p50"], found["leave"]) == (3, 0.8)
    local = score(rows, Ladder(("device",)).follow(rows, CONFIDENCE))
    # Wrong on 1, 2 and 4; on 4 the last tier is wrong too.
    assert local["risk"] == pytest.approx(0.6)
    assert local["excess"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cheapest", "is not like 'min cost s.t. risk<=0.1'"),
        ("max cost s.t. risk<=0.1", "begins with neither 'max accuracy' nor 'min' of risk"),
        ("min accuracy s.t. risk<=0.1", "begins with neither"),
        ("min cost s.t. speed<=1", "'speed<=1' is not FIGURE<=NUMBER"),
        ("min cost s.t. risk<=1e", "'1e' is no number"),
        ("min cost s.t. risk<=1.5", "'risk<=1.5' is out of range"),
        ("min cost s.t. risk<=0.1, risk<=0.2", "limits a figure twice"),
    ],
)
def test_an_objective_that_is_none_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=r"objective: .*") as caught:
        read_objective(text)
    assert problem in str(caught.value)


def test_a_front_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(1)
    costs = rng.integers(0, 6, (60, 3)).astype(float)
    front = {tuple(costs[i]) for i in _front(costs)}
    for row in costs:
        beaten = any((other <= row).all() and (other < row).any() for other in costs)
        assert (tuple(row) in front) == (not beaten)

    def scored(accuracy: float, cost: float) -> Scored:
        figures = {"accuracy": accuracy, "cost": cost, "leave": 0.5, "p95": float("nan")}
        return Scored(Ladder(("device",)), figures)

    assert pareto_front((scored(0.9, 2), scored(0.8, 1), scored(0.8, 2))) == (1, 0)


def certified(start: int, text: str, develop: int = 500, fresh: int = 1000) -> LadderPolicy:
    rows = ladder_rows(ALL.take(np.arange(start, start + develop + fresh)), THREE)
    found = search(
        rows.take(np.arange(develop)),
        rows.take(np.arange(develop, develop + fresh)),
        read_objective(text),
        delta=0.1,
        most_usd=0.2,
    )
    assert (found.refusal is None) == (found.policy.certificate is not None)
    return found.policy


def test_the_cheapest_at_certified_risk_is_cheaper_than_asking_the_last_tier() -> None:
    policy = certified(0, "min cost s.t. risk<=0.1", develop=2000, fresh=4000)
    assert policy.certificate is not None
    fresh = ladder_rows(ALL.take(np.arange(30_000, 60_000)), THREE)
    ours = score(fresh, policy.follow(fresh))
    top = score(fresh, Ladder(("tier2",)).follow(fresh, {}))
    assert ours["risk"] <= 0.1
    assert ours["cost"] < top["cost"] / 3


def test_a_limit_on_everything_holds_on_fresh_rows() -> None:
    text = "max accuracy s.t. cost<=0.004, p95<=2.2, leave<=0.8"
    policy = certified(6000, text, develop=2000, fresh=4000)
    assert policy.certificate is not None
    assert [bound.figure for bound in policy.certificate.bounds] == ["cost", "p95", "leave"]
    fresh = ladder_rows(ALL.take(np.arange(30_000, 60_000)), THREE)
    found = score(fresh, policy.follow(fresh))
    assert found["cost"] <= 0.004
    assert found["p95"] <= 2.2
    assert found["leave"] <= 0.8
    assert found["accuracy"] > score(fresh, Ladder(("device",)).follow(fresh, {}))["accuracy"] + 0.1


def test_ladder_certificates_are_wrong_no_more_often_than_they_say() -> None:
    population = ladder_rows(ALL, THREE)
    wrong = found = 0
    rng = np.random.default_rng(3)
    for _ in range(60):
        rows = population.take(rng.integers(0, len(population), 900))
        policy = search(
            rows.take(np.arange(400)),
            rows.take(np.arange(400, 900)),
            read_objective("min cost s.t. risk<=0.12"),
            delta=0.1,
            candidates=150,
        ).policy
        if policy.certificate is not None:
            found += 1
            wrong += score(population, policy.follow(population))["risk"] > 0.12
    assert found >= 50
    assert wrong / 60 <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 60)


def test_what_cannot_be_had_goes_to_the_last_tier() -> None:
    policy = certified(0, "min cost s.t. risk<=0.01")
    assert policy.certificate is None
    assert policy.ladder == Ladder(("tier2",))
    assert describe(policy.ladder) == "tier2"


def test_a_file_is_read_back_and_refused_where_it_is_broken() -> None:
    policy = certified(0, "min leave s.t. excess<=0.1")
    data = policy.to_bytes()
    assert is_ladder(data)
    assert LadderPolicy.from_bytes(data) == policy
    assert not is_ladder(b"{}")
    assert not is_ladder(b"no JSON")
    policy.check_fits(ALL.header)
    tiers = tuple(dataclasses.replace(tier, model="x") for tier in ALL.header.tiers)
    with pytest.raises(PolicyMismatch, match="is for device with the model model of dev, and the"):
        policy.check_fits(dataclasses.replace(ALL.header, tiers=tiers))
    with pytest.raises(InvalidInput, match="policy: is for another wording or other options"):
        policy.check_fits(dataclasses.replace(ALL.header, options=(), wording=None))
    for field, value, problem in (
        ("version", 9, "ladder.format: is not cascade-ladder 1"),
        ("confidence", [], "ladder.confidence: must be a JSON object"),
        ("tiers", [], "ladder.tiers: must be a list"),
        ("more", 1, "ladder.more: is not a known field"),
    ):
        with pytest.raises(InvalidInput) as caught:
            LadderPolicy.from_bytes(json.dumps({**json.loads(data), field: value}).encode())
        assert problem in str(caught.value)


def test_ladders_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InvalidInput, match="thresholds: are 1, not 2"):
        Ladder(THREE, "climb", (0.5,))
    with pytest.raises(InvalidInput, match="tiers: 3 cannot best; 2 to 2 can"):
        Ladder(THREE, "best", (0.5,))
    with pytest.raises(InvalidInput, match="ladder: needs two or more different tiers"):
        ladder_rows(ALL, ["device"])
    rows = ladder_rows(ALL.take(np.arange(300)), THREE)
    with pytest.raises(InvalidInput, match="most-usd: is missing"):
        search(rows, rows, read_objective("max accuracy s.t. cost<=0.1"), delta=0.1)
    with pytest.raises(InvalidInput, match=r"most-usd: 0\.001 is below a request's"):
        search(
            rows, rows, read_objective("max accuracy s.t. cost<=0.0005"), delta=0.1, most_usd=0.001
        )


def test_a_tier_that_does_not_say_how_sure_it_is_is_only_asked_last() -> None:
    rows = ladder_rows(ALL.take(np.arange(1500)), ("device", "tier2"))
    assert np.isnan(rows.score[1]).all()
    found = search(
        rows.take(np.arange(500)),
        rows.take(np.arange(500, 1500)),
        read_objective("min cost s.t. risk<=0.1"),
        delta=0.1,
    )
    assert found.policy.certificate is not None
    assert all(each.ladder.way == "climb" for each in found.scored)
    assert found.policy.confidence.keys() <= {"device"}


def test_confidence_of_a_followed_policy_is_that_of_its_models() -> None:
    rows = ladder_rows(ALL.take(np.arange(200)), THREE)
    model = ConfidenceModel(Platt(1.0, 0.0))
    ladder = Ladder(("device", "tier2"), "climb", (0.75,))
    policy = LadderPolicy("", ALL.header.tiers, "", ladder, {"device": model}, None)
    assert ((policy.follow(rows).place == 0) == (rows.score[0] >= 0.75)).all()


def searched_rows(*modes: str, n: int = 400) -> LadderRows:
    """Rows of a device whose options were scored in these modes, in turn."""
    rng = np.random.default_rng(3)
    score = rng.uniform(0.5, 1, n)
    columns: dict[str, object] = {
        "id": [f"r{i}" for i in range(n)],
        "input_sha256": [sha256_bytes(f"r{i}".encode()) for i in range(n)],
        "tier.device.raw_score": score,
        "tier.device.option_mode": [modes[i % len(modes)] for i in range(n)],
        "tier.device.option_unexplored": np.zeros(n),
        "tier.device.correct": (rng.random(n) < score).astype(float),
        "tier.tier1.correct": (rng.random(n) < 0.95).astype(float),
    }
    for name in ("logprobs", "priors", "probabilities"):
        columns[f"tier.device.option_{name}"] = [[0.0, 0.0]] * n
    for tier in THREE[:2]:
        columns |= {f"tier.{tier}.latency_s": np.ones(n), f"tier.{tier}.cost_usd": np.ones(n)}
    records = from_columns(header(*THREE[:2]), columns)  # type: ignore[arg-type]
    return ladder_rows(records, THREE[:2])


@pytest.mark.parametrize(("mode", "feature"), [("search", "search_bound"), ("exact", "raw_score")])
def test_a_ladder_knows_how_the_device_scored_its_options(mode: str, feature: str) -> None:
    rows = searched_rows(mode)
    wanted = read_objective("max accuracy s.t. leave<=0.9")
    policy = search(rows, rows, wanted, delta=0.1, task_id="mood").policy
    models = {tier: model.feature for tier, model in policy.confidence.items()}
    assert models == {"device": feature}
    assert policy.wording is not None
    assert policy.wording.task_id == "mood"
    assert LadderPolicy.from_bytes(policy.to_bytes()) == policy


def test_scores_of_both_modes_are_not_mixed() -> None:
    rows = searched_rows("search", "exact")
    with pytest.raises(InvalidInput, match="device searched its options in some rows only"):
        search(rows, rows, read_objective("min cost s.t. risk<=0.5"), delta=0.1)
