"""Constraints name everything that stands in the way, in one order, and replay from a record."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.budget import BudgetState
from cascade.conditions import Conditions
from cascade.confidence import ConfidenceModel, Isotonic, Platt
from cascade.constraints import Situation, obstacles, refusal
from cascade.decision_record import DecisionRecord, replay_decision
from cascade.errors import InvalidInput, RemoteError
from cascade.gain import GainModel
from cascade.local import LocalAnswer
from cascade.policy import Reason, conclude, decide
from cascade.request import Constraints, DataClass, Message, Request
from cascade.scorer import Linear
from cascade.signals import EMPTY_SIGNALS, OptionScores
from tests.cascade.scripted import SIGNALS, policy

FREE = Situation(cluster=True, remaining_s=10.0)
POOR = BudgetState(0.1, 0.05, 0.01)


@pytest.mark.parametrize(
    ("limits", "situation", "expected"),
    [
        ({}, FREE, ()),
        ({"data_class": DataClass.NEVER_LEAVE}, FREE, (Reason.NEVER_LEAVE,)),
        ({}, replace(FREE, pii=("IBAN_CODE", "US_SSN")), ("pii:IBAN_CODE", "pii:US_SSN")),
        ({}, replace(FREE, cluster=False), (Reason.NO_CLUSTER,)),
        ({"allowed_tiers": frozenset()}, FREE, (Reason.NO_TIER_ALLOWED,)),
        ({}, replace(FREE, conditions=Conditions("offline")), (Reason.OFFLINE,)),
        ({}, replace(FREE, conditions=Conditions("metered")), ()),
        ({"metered_ok": False}, replace(FREE, conditions=Conditions("metered")), (Reason.METERED,)),
        ({"metered_ok": False}, replace(FREE, conditions=Conditions("unknown")), ()),
        (
            {"min_battery": 0.3},
            replace(FREE, conditions=Conditions(battery_share=0.2, charging=False)),
            (Reason.BATTERY_LOW,),
        ),
        (
            {"min_battery": 0.3},
            replace(FREE, conditions=Conditions(battery_share=0.2, charging=True)),
            (),
        ),
        ({"min_battery": 0.3}, FREE, ()),
        ({}, replace(FREE, circuit_open=True), (Reason.CIRCUIT_OPEN,)),
        ({}, replace(FREE, p95_s={"tier1": 11.0}), (Reason.DEADLINE_TOO_SHORT,)),
        ({}, replace(FREE, remaining_s=-0.1), (Reason.DEADLINE_TOO_SHORT,)),
        ({}, replace(FREE, budget=replace(POOR, bucket_left_usd=None)), (Reason.BUDGET_DAY,)),
        ({}, replace(FREE, budget=replace(POOR, day_left_usd=0.1)), (Reason.BUDGET_RATE,)),
        ({}, replace(FREE, budget_unreadable=True), (Reason.BUDGET_UNREADABLE,)),
    ],
)
def test_each_constraint_has_its_reason(limits, situation, expected):
    assert obstacles(Constraints(**limits), situation) == expected


def test_all_reasons_are_told_in_order_and_money_comes_last():
    limits = Constraints(
        data_class=DataClass.NEVER_LEAVE, max_remote_calls=0, min_battery=0.5, metered_ok=False
    )
    situation = Situation(
        cluster=False,
        remaining_s=0.0,
        conditions=Conditions("metered", 0.1, False),
        circuit_open=True,
        budget=POOR,
        pii=("US_SSN",),
    )
    assert obstacles(limits, situation) == (
        "never_leave", "pii:US_SSN", "no_cluster", "no_tier_allowed", "metered", "battery_low",
        "circuit_open", "deadline_too_short", "budget_day", "budget_rate",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stands", "error", "text"),
    [
        ((Reason.NEVER_LEAVE, Reason.CIRCUIT_OPEN), RemoteError, "UNAVAILABLE"),
        ((Reason.BUDGET_DAY,), RemoteError, "RESOURCE_EXHAUSTED"),
        ((Reason.DEADLINE_TOO_SHORT,), RemoteError, "DEADLINE_EXCEEDED"),
        (("pii:IBAN_CODE",), InvalidInput, "pii:IBAN_CODE"),
    ],
)
def test_without_a_device_the_error_says_what_stands_in_the_way(stands, error, text):
    problem = refusal(stands)
    assert isinstance(problem, error)
    assert text in str(problem)
    assert all(reason in str(problem) for reason in stands)


def answered(probability: float, mode: str) -> LocalAnswer:
    share = np.array([probability, 1 - probability])
    scores = OptionScores(("good", "bad"), np.log(share), np.zeros(2), share, mode=mode)
    return LocalAnswer("good", SIGNALS, scores, 5, 1, 0.0, 0.0, "stop")


AMOUNT = st.floats(0, 100)
SITUATIONS = st.builds(
    Situation,
    cluster=st.booleans(),
    remaining_s=st.floats(-1, 100),
    p95_s=st.dictionaries(st.sampled_from(["tier1", "tier2"]), st.floats(0.001, 1000), max_size=2),
    conditions=st.builds(
        Conditions,
        st.sampled_from(["offline", "metered", "unmetered", "unknown"]),
        st.none() | st.floats(0, 1),
        st.none() | st.booleans(),
        st.none() | st.booleans(),
        st.none() | st.floats(-40, 120),
    ),
    circuit_open=st.booleans(),
    budget=st.none() | st.builds(BudgetState, AMOUNT, st.none() | AMOUNT, st.none() | AMOUNT),
    budget_unreadable=st.booleans(),
    pii=st.lists(st.sampled_from(["IBAN_CODE", "detector_failed"]), unique=True).map(tuple),
)
LIMITS = st.builds(
    Constraints,
    deadline_s=st.floats(0.1, 100),
    allowed_tiers=st.none() | st.frozensets(st.sampled_from(["tier1", "tier2"])),
    max_cost_usd=st.none() | AMOUNT,
    max_remote_calls=st.integers(0, 16),
    data_class=st.sampled_from(DataClass),
    residency=st.sampled_from(["", "eu"]),
    commercial=st.booleans(),
    metered_ok=st.booleans(),
    min_battery=st.floats(0, 1),
    never_train=st.booleans(),
)
NUMBERS = st.floats(-3, 3)
SCORERS = st.sampled_from([("raw_score",), ("mean_logprob",), ("raw_score", "min_margin")]).flatmap(
    lambda names: st.builds(
        Linear,
        st.just(names),
        st.tuples(*(NUMBERS for _ in names)),
        st.tuples(*(st.floats(0.1, 3) for _ in names)),
        st.tuples(*(NUMBERS for _ in names)),
        NUMBERS,
    )
)
CONFIDENCES = st.builds(
    ConfidenceModel,
    st.builds(Platt, NUMBERS, NUMBERS) | st.just(Isotonic((0.2, 0.8), (0.1, 0.9))),
    st.sampled_from(["raw_score", "search_bound"]),
    st.none() | SCORERS,
)
GAINS = st.builds(GainModel, CONFIDENCES, CONFIDENCES, st.floats(0, 2), st.floats(-1, 1))
VETOES = st.sampled_from([(), ("veto:a",), ("veto:a", "veto:b")])


@given(
    limits=LIMITS,
    situation=SITUATIONS,
    probability=st.floats(0.01, 0.99),
    threshold=st.sampled_from([None, "absent"]) | st.floats(0, 1),
    mode=st.sampled_from(["exact", "search"]),
    vetoes=VETOES,
    unanswered=st.booleans(),
    demoted=st.booleans(),
    swapped=st.booleans(),
    confidence=CONFIDENCES,
    gain=st.none() | GAINS,
    min_gain=st.none() | st.floats(-1, 1),
    finish=st.sampled_from(["stop", "length", "callback"]),
    fired=st.booleans(),
    empty=st.booleans(),
)
def test_every_decision_is_made_again_from_its_record(
    *, limits, situation, probability, threshold, mode, vetoes, unanswered, demoted, swapped,
    confidence, gain, min_gain, finish, fired, empty,
):  # fmt: skip
    request = Request((Message("user", "?"),), ("good", "bad"), "mood", constraints=limits)
    own = None if threshold == "absent" else policy(threshold)
    if own is not None:
        own = replace(own, confidence=confidence, gain=gain, min_gain=min_gain if gain else None)
    answer = None if unanswered else answered(probability, mode)
    stopped = answer is not None and (fired or finish == "callback")
    if answer is not None:
        answer = replace(answer, finish=finish)
        if empty:
            answer = replace(answer, signals=EMPTY_SIGNALS)
        if swapped:
            answer = replace(answer, adapter_digest="5" * 64)
    stands = obstacles(limits, situation)
    first = (Reason.CLOUD_PREFERRED,) if unanswered else ()
    if answer is None:
        made, vetoes = conclude(first, None, (), stands), ()
    else:
        made = decide(own, answer, stands, vetoes, demoted=demoted, stopped=stopped)
    record = DecisionRecord.of(
        request, own, answer, made, unanswered=first, vetoes=vetoes,
        demoted=demoted, stopped=stopped, situation=None if made.accept else situation,
    )  # fmt: skip
    read = DecisionRecord.from_bytes(record.to_bytes())
    assert read == record
    assert replay_decision(read) == made == read.decision
    if own is not None and answer is not None and not swapped:
        assert replay_decision(read, own) == made
    assert not (made.accept and made.escalate)
    assert made.accept <= (not vetoes and made.reasons == (Reason.CONFIDENT,))
    assert made.escalate <= (not stands)
    assert not (made.accept and stopped)
    if finish == "callback":
        assert (made.confidence, made.gain, record.raw_score) == (None, None, None)


def recorded() -> DecisionRecord:
    request = Request((Message("user", "secret words"),), ("good", "bad"), "mood")
    made = decide(policy(0.8), answered(0.6, "exact"), obstacles(request.constraints, FREE))
    return DecisionRecord.of(request, policy(0.8), answered(0.6, "exact"), made, situation=FREE)


def test_a_record_that_was_tampered_with_does_not_replay():
    record = recorded()
    assert record.decision.escalate
    other = replace(record, decision=replace(record.decision, accept=True, escalate=False))
    assert replay_decision(other) != other.decision
    late = replace(record, situation=replace(FREE, remaining_s=0.0))
    assert replay_decision(late).reasons == (Reason.UNSURE, Reason.DEADLINE_TOO_SHORT)


def test_a_record_replays_with_its_own_policy_alone():
    with pytest.raises(InvalidInput, match="policy: is not the one"):
        replay_decision(recorded(), policy(0.7))


def test_a_record_holds_nothing_of_what_was_asked():
    assert b"secret" not in recorded().to_bytes()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format_version": 1}, "format_version"),
        ({"stopped": 1}, "stopped"),
        ({"gain": 2}, "gain"),
        ({"min_gain": "0.1"}, "min_gain"),
        ({"confidense": 1}, "confidense"),
        ({"confidence": 2}, "confidence"),
        ({"policy_mode": "guess"}, "policy_mode"),
        ({"policy_digest": "abc"}, "policy_digest"),
        ({"constraints": {}}, r"constraints\.allowed_tiers"),
        ({"situation": {"cluster": 1}}, r"situation\.budget"),
        ({"decision": {"accept": 1}}, r"decision\.accept"),
    ],
)
def test_an_unusable_field_of_a_record_is_named(change, field):
    value = json.loads(recorded().to_bytes()) | change
    with pytest.raises(InvalidInput, match=field):
        DecisionRecord.from_bytes(json.dumps(value).encode())
    with pytest.raises(InvalidInput, match="JSON"):
        DecisionRecord.from_bytes(b"{")


def test_records_from_before_devices_learned_can_be_read():
    record = recorded()
    value = json.loads(record.to_bytes())
    del value["constraints"]["never_train"]
    for name in ("idle", "temperature_c"):
        del value["situation"]["conditions"][name]
    assert DecisionRecord.from_bytes(json.dumps(value).encode()) == record


def test_every_field_of_the_constraints_is_in_the_record():
    value = json.loads(recorded().to_bytes())["constraints"]
    assert value.keys() == {field.name for field in dataclasses.fields(Constraints)}
