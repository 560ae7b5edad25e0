"""A decision with everything that it was made from, so that it can be made again and compared.

One JSON object a decision: numbers, digests and fixed words, and nothing of what was asked or
answered. ``replay_decision`` is the proof that nothing else went into it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Final, Self, cast, get_args

from cascade.budget import BudgetState
from cascade.conditions import Conditions, Connectivity
from cascade.constraints import Situation, obstacles
from cascade.draft import MAX_DRAFT_TOKENS
from cascade.errors import InvalidInput
from cascade.files import sha256_bytes
from cascade.local import LocalAnswer
from cascade.policy import Decision, Policy, conclude, first_reason
from cascade.request import Constraints, DataClass, Request
from cascade.signals import ScoreMode
from cascade.strict import Fields

FORMAT_VERSION: Final = 2


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One decision.

    Arguments:
        policy_digest: sha256 of the policy's signed bytes, or ``None`` without a policy.
        policy_mode, scored_mode: how the policy's calibration and this answer were scored; ``None``
            without a policy, or without options.
        raw_score, confidence: of the device's answer, in [0, 1]; ``None`` where there is none, or a
            part. Features are not kept: of a confidence that is made of them only the result is.
        threshold: the policy's; ``None`` without one.
        gain: what escalating was expected to gain, in [-1, 1]; ``None`` where nobody could tell.
        min_gain: the least that the policy escalates for; ``None`` where it does not ask.
        stopped: the policy's rule for stopping early fired.
        unanswered: why there is no answer of the device; empty where there is one.
        vetoes: checks that the answer failed.
        demoted: the monitor had withdrawn the policy.
        constraints: the request's limits, those of the device included.
        situation: what the constraints looked at; ``None`` where the answer was accepted, for then
            nobody looks.
        decision: what came of it.
        draft_tokens: tokens of the device's answer that went to the cluster as a draft. Known once
            the call has ended, by when such a decision is told; so is ``draft_kept``.
        draft_kept: how many of them, from the first on, became a part of the cluster's answer;
            ``None`` where no tier has looked at them and answered.
    """

    request_id: str
    task_id: str
    policy_digest: str | None
    policy_mode: ScoreMode | None
    scored_mode: ScoreMode | None
    raw_score: float | None
    confidence: float | None
    threshold: float | None
    gain: float | None
    min_gain: float | None
    stopped: bool
    unanswered: tuple[str, ...]
    vetoes: tuple[str, ...]
    demoted: bool
    constraints: Constraints
    situation: Situation | None
    decision: Decision
    draft_tokens: int = 0
    draft_kept: int | None = None

    @classmethod
    def of(
        cls,
        request: Request,
        policy: Policy | None,
        answer: LocalAnswer | None,
        decision: Decision,
        *,
        unanswered: tuple[str, ...] = (),
        vetoes: tuple[str, ...] = (),
        demoted: bool = False,
        stopped: bool = False,
        situation: Situation | None = None,
    ) -> Self:
        """The record of a decision that was just made.

        Arguments:
            request: with the limits that held, those of the device included.
        """
        valid = policy and answer and policy.adapter_digest == answer.adapter_digest
        judged = policy if valid else None
        return cls(
            request_id=request.request_id,
            task_id=request.task_id,
            policy_digest=sha256_bytes(judged.to_bytes()) if judged else None,
            policy_mode=judged.confidence.mode if judged else None,
            scored_mode=answer.options.mode if answer and answer.options else None,
            raw_score=answer.raw_score if answer and answer.whole else None,
            confidence=decision.confidence,
            threshold=judged.threshold if judged else None,
            gain=decision.gain,
            min_gain=judged.min_gain if judged else None,
            stopped=stopped,
            unanswered=unanswered,
            vetoes=vetoes,
            demoted=demoted and judged is not None,
            constraints=request.constraints,
            situation=situation,
            decision=decision,
        )

    def to_bytes(self) -> bytes:
        """One line of JSON, with its end."""
        limits = dataclasses.asdict(self.constraints)
        allowed = self.constraints.allowed_tiers
        limits["allowed_tiers"] = None if allowed is None else sorted(allowed)
        value = {
            "format_version": FORMAT_VERSION,
            **{
                name: getattr(self, name)
                for name in (
                    *("request_id", "task_id", "policy_digest", "policy_mode", "scored_mode"),
                    *("raw_score", "confidence", "threshold", "gain", "min_gain", "stopped"),
                    *("unanswered", "vetoes", "demoted"),
                )
            },
            "constraints": limits,
            "situation": dataclasses.asdict(self.situation) if self.situation else None,
            "decision": dataclasses.asdict(self.decision),
            "draft_tokens": self.draft_tokens,
            "draft_kept": self.draft_kept,
        }
        return (json.dumps(value, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what ``to_bytes`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields.from_bytes(data, "decision")
        if fields.number("format_version") != FORMAT_VERSION:
            raise InvalidInput("decision.format_version", f"is not {FORMAT_VERSION}")
        situation = fields.take("situation")
        record = cls(
            request_id=fields.text("request_id"),
            task_id=fields.text("task_id"),
            policy_digest=_digest(fields, "policy_digest"),
            policy_mode=_mode(fields, "policy_mode"),
            scored_mode=_mode(fields, "scored_mode"),
            raw_score=fields.number_or_none("raw_score", -1e-6, 1 + 1e-6),
            confidence=fields.number_or_none("confidence", 0.0, 1.0),
            # A ladder may have one above 1, which nothing reaches.
            threshold=fields.number_or_none("threshold", 0.0, 2.0),
            gain=fields.number_or_none("gain", -1.0, 1.0),
            min_gain=fields.number_or_none("min_gain", -1.0, 1.0),
            stopped=fields.boolean("stopped"),
            unanswered=fields.texts("unanswered"),
            vetoes=fields.texts("vetoes"),
            demoted=fields.boolean("demoted"),
            constraints=_constraints(fields.take("constraints")),
            situation=None if situation is None else _situation(situation),
            decision=_decision(fields.take("decision")),
            # Written since drafts are told of.
            draft_tokens=_tokens(fields, "draft_tokens") if fields.given("draft_tokens") else 0,
            draft_kept=_tokens(fields, "draft_kept") if fields.given("draft_kept") else None,
        )
        fields.end()
        return record


def replay_decision(record: DecisionRecord, policy: Policy | None = None) -> Decision:
    """The decision, made again from its record; equal to ``record.decision`` unless something went
    into that one which the record does not tell.

    Arguments:
        policy: the policy of the record, where it is at hand: its threshold and least gain, and of
            what it makes of the raw score alone, confidence and gain, are then used instead of what
            is recorded.

    Raises:
        InvalidInput: ``policy`` is not the one of the record.
    """
    confidence, threshold = record.confidence, record.threshold
    gain, min_gain = record.gain, record.min_gain
    same_mode = record.scored_mode is None or record.scored_mode == record.policy_mode
    if policy is not None:
        if sha256_bytes(policy.to_bytes()) != record.policy_digest:
            raise InvalidInput("policy", "is not the one that the decision was made with")
        threshold, min_gain = policy.threshold, policy.min_gain
        if same_mode and not record.demoted and record.raw_score is not None:
            if policy.confidence.scorer is None:
                confidence = policy.confidence(record.raw_score)
            if policy.gain is not None and not policy.gain.features_needed:
                gain = policy.gain(record.raw_score)
    first: tuple[str, ...] = record.unanswered or first_reason(
        confidence,
        threshold,
        policy=record.policy_digest is not None,
        same_mode=same_mode,
        demoted=record.demoted,
        stopped=record.stopped,
    )
    stands = obstacles(record.constraints, record.situation) if record.situation else ()
    return conclude(first, confidence, record.vetoes, stands, gain=gain, min_gain=min_gain)


def _constraints(value: object) -> Constraints:
    fields = Fields(value, "decision.constraints")
    allowed = fields.take("allowed_tiers")
    if allowed is not None and not _are_texts(allowed):
        raise InvalidInput(fields.path("allowed_tiers"), "must be a list of strings or null")
    read = Constraints(
        deadline_s=fields.number("deadline_s"),
        allowed_tiers=None if allowed is None else frozenset(cast("list[str]", allowed)),
        max_cost_usd=fields.number_or_none("max_cost_usd"),
        max_remote_calls=fields.integer("max_remote_calls", 0, 16),
        data_class=DataClass(fields.choice("data_class", [each.value for each in DataClass])),
        residency=fields.text("residency"),
        commercial=fields.boolean("commercial"),
        metered_ok=fields.boolean("metered_ok"),
        min_battery=fields.number("min_battery"),
        never_train=fields.boolean("never_train") if fields.given("never_train") else False,
    )
    fields.end()
    read.check()
    return read


def _situation(value: object) -> Situation:
    fields = Fields(value, "decision.situation")
    budget = fields.take("budget")
    read = Situation(
        cluster=fields.boolean("cluster"),
        remaining_s=fields.number("remaining_s"),
        p95_s=_numbers_by_name(fields.take("p95_s"), fields.path("p95_s")),
        conditions=_conditions(fields.take("conditions")),
        circuit_open=fields.boolean("circuit_open"),
        budget=None if budget is None else _budget(budget),
        budget_unreadable=fields.boolean("budget_unreadable"),
        pii=fields.texts("pii"),
    )
    fields.end()
    return read


def _conditions(value: object) -> Conditions:
    fields = Fields(value, "decision.situation.conditions")
    charging = fields.take("charging")
    if charging is not None and not isinstance(charging, bool):
        raise InvalidInput(fields.path("charging"), "must be true, false or null")
    connectivity = fields.choice("connectivity", get_args(Connectivity))
    read = Conditions(
        cast(Connectivity, connectivity),
        fields.number_or_none("battery_share", 0.0, 1.0),
        charging,
        # Written since devices learn.
        fields.boolean("idle") if fields.given("idle") else None,
        fields.number("temperature_c") if fields.given("temperature_c") else None,
    )
    fields.end()
    return read


def _budget(value: object) -> BudgetState:
    fields = Fields(value, "decision.situation.budget")
    read = BudgetState(
        fields.number("needed_usd", 0.0),
        fields.number_or_none("day_left_usd"),
        fields.number_or_none("bucket_left_usd"),
    )
    fields.end()
    return read


def _decision(value: object) -> Decision:
    fields = Fields(value, "decision.decision")
    read = Decision(
        fields.boolean("accept"),
        fields.boolean("escalate"),
        fields.number_or_none("confidence", 0.0, 1.0),
        fields.texts("reasons"),
        fields.number_or_none("gain", -1.0, 1.0),
    )
    fields.end()
    return read


def _numbers_by_name(value: object, where: str) -> dict[str, float]:
    fields = Fields(value, where)
    names = list(value) if isinstance(value, dict) else []
    return {name: fields.number(name) for name in names}


def _tokens(fields: Fields, name: str) -> int:
    return fields.integer(name, 0, MAX_DRAFT_TOKENS)


def _digest(fields: Fields, name: str) -> str | None:
    value = fields.take(name)
    return None if value is None else Fields({name: value}, "decision").sha256(name)


def _mode(fields: Fields, name: str) -> ScoreMode | None:
    value = fields.take(name)
    if value is None:
        return None
    known = Fields({name: value}, "decision").choice(name, get_args(ScoreMode))
    return cast(ScoreMode, known)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
