"""The decision: is the device's answer good enough, and may the request leave if it is not?

A ``Policy`` holds, for one task on one model, the wording, the confidence model, the threshold and
the certificate behind it. ``decide`` is a pure function; the same one runs on devices and offline.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from cascade.certificate import Certificate
from cascade.confidence import ConfidenceModel
from cascade.draft import Drafting
from cascade.early_stop import EarlyStop
from cascade.errors import InvalidInput
from cascade.features import SELF_CHECKS
from cascade.files import write_whole
from cascade.gain import GainModel
from cascade.local import LocalAnswer, ModelInfo
from cascade.remote import DeviceReport
from cascade.request import Constraints, DataClass, Request
from cascade.score_reference import ScoreReference
from cascade.signing import SigningKey, TrustStore
from cascade.strict import Fields
from cascade.task import Task

FORMAT_VERSION = 2
_TASK_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Reason(StrEnum):
    """Why a request went the way it did."""

    CONFIDENT = "confident"
    """The calibrated confidence reaches the certified threshold."""
    UNSURE = "unsure"
    """It does not."""
    TARGET_INFEASIBLE = "target_infeasible"
    """No threshold could be certified for this task: everything escalates."""
    UNCERTIFIED_TASK = "uncertified_task"
    """No policy is valid for this task on this model, so nothing can be promised."""
    UNCERTIFIED_MODE = "uncertified_mode"
    """The task's policy was fitted to scores of the other mode (exact or search) than these."""
    POLICY_DEMOTED = "policy_demoted"
    """The monitor found the risk above what was certified, so nothing is promised any more."""
    UNMEASURED = "unmeasured"
    """A signal that the task's confidence needs was not measured, e.g. of an empty answer."""
    STOPPED_EARLY = "stopped_early"
    """The device stopped writing, for its answer would hardly have been kept. Or it wrote on, since
    nobody else could, and does not vouch for an answer that it would have stopped."""
    LITTLE_GAIN = "little_gain"
    """The cluster is not expected to do better by as much as the policy asks for."""
    NEVER_LEAVE = "never_leave"
    """The data class forbids escalation."""
    NO_TIER_ALLOWED = "no_tier_allowed"
    """The request's constraints allow no tier or no remote call."""
    NO_CLUSTER = "no_cluster"
    """No cluster is configured."""
    REMOTE_FAILED = "remote_failed"
    """The cluster was asked and did not answer; the device's answer stands unverified."""
    CLOUD_PREFERRED = "cloud_preferred"
    """The request asks for the cluster at once."""
    NO_LOCAL_MODEL = "no_local_model"
    """There is no model on this device."""
    LOCAL_FAILED = "local_failed"
    """The device could not read the request, e.g. a prompt longer than its context."""
    OFFLINE = "offline"
    """The device has no connection."""
    METERED = "metered"
    """The connection costs by volume, and the request does not allow that."""
    BATTERY_LOW = "battery_low"
    """The battery is below what the request asks for, and is not being charged."""
    CIRCUIT_OPEN = "circuit_open"
    """The cluster failed several times in a row and is left alone for a while."""
    DEADLINE_TOO_SHORT = "deadline_too_short"
    """No tier that may answer is expected to within what is left of the deadline."""
    BUDGET_DAY = "budget_day"
    """The day's money does not cover another call."""
    BUDGET_RATE = "budget_rate"
    """The bucket that money flows into does not hold enough for another call."""
    BUDGET_UNREADABLE = "budget_unreadable"
    """There is a limit on money, but its ledger cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a local answer.

    Arguments:
        accept: return it as verified.
        escalate: ask the cluster. Neither: return it unverified.
        confidence: calibrated P(right), or ``None`` without a valid policy.
        reasons: all of them in the order of deciding: words of ``Reason``, ``veto:NAME`` for a
            check that the answer failed, ``pii:KIND`` for what was found in it and may not leave.
        gain: expected P(next tier right) - P(this right); ``None`` where the policy cannot tell.
    """

    accept: bool
    escalate: bool
    confidence: float | None
    reasons: tuple[str, ...]
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """Wording, confidence model, threshold and certificate of one task on one model.

    Arguments:
        base_digest, adapter_digest: the model for which this is valid; see ``edge.bundle``.
        threshold: the lowest confidence that is accepted, or ``None`` where no threshold could be
            certified: then nothing is accepted.
        certificate: the evidence for ``threshold``; ``None`` exactly when ``threshold`` is.
        scores: raw scores of the certify part, for the monitor, of the answers that ``early_stop``
            does not stop; ``None`` leaves inputs unwatched.
        gain: what escalating is expected to gain; ``None`` where that was not fitted.
        min_gain: an answer below ``threshold`` is escalated where ``gain`` is at least this, and
            stays, unverified, where it is less; ``None`` escalates all of them.
        early_stop: when to stop writing an answer that will not be kept; ``None`` never does.
        drafting: whether an answer that is not kept is proposed to the cluster, and when the device
            writes on to that end where ``early_stop`` would stop it; ``None`` never.
    """

    task: Task
    base_digest: str
    adapter_digest: str
    confidence: ConfidenceModel
    threshold: float | None
    certificate: Certificate | None
    scores: ScoreReference | None = None
    gain: GainModel | None = None
    min_gain: float | None = None
    early_stop: EarlyStop | None = None
    drafting: Drafting | None = None

    def covers(self, options: tuple[str, ...], model: ModelInfo) -> bool:
        """Whether this policy may judge answers among ``options`` by ``model``."""
        return (
            set(options) == set(self.task.options)
            and self.base_digest == model.base_digest
            and self.adapter_digest == model.adapter_digest
        )

    def onward(self, request: Request, answer: LocalAnswer | None) -> Request:
        """A request as it escalates; a ladder names the tiers that it would still ask.

        Arguments:
            answer: the device's, unless this policy may not judge it.
        """
        return request

    def reported(
        self, report: DeviceReport, answer: LocalAnswer | None, decision: Decision
    ) -> DeviceReport:
        """What the cluster is told; by a ladder, what it takes to go on from there."""
        return report

    @property
    def self_checks(self) -> tuple[str, ...]:
        """Those of ``SELF_CHECKS`` that confidence or gain need of each answer."""
        needed = {*self.confidence.features, *(self.gain.features if self.gain else ())}
        return tuple(name for name in SELF_CHECKS if name in needed)

    def check_self_checks(self) -> None:
        """Raise ``InvalidInput`` where a check is needed that this task's answers cannot have."""
        if self.task.options and "agreement" in self.self_checks:
            raise InvalidInput(
                "policy.confidence", "needs agreement, which is of free answers; tune without it"
            )

    def check_early_stop(self) -> None:
        """Raise ``InvalidInput`` unless ``early_stop`` fits this task and threshold."""
        if self.early_stop is None:
            return
        if self.min_gain is not None:
            raise InvalidInput(
                "policy.early_stop",
                "stops answers before anybody knows what there is to gain; leave out min_gain",
            )
        if self.task.options:
            raise InvalidInput("policy.early_stop", "is for free answers, not for a closed set")
        if self.threshold is None or self.threshold < self.early_stop.threshold:
            raise InvalidInput(
                "policy.early_stop.threshold",
                f"{self.early_stop.threshold} is above the policy's threshold, {self.threshold}: "
                "answers would be stopped that may be kept",
            )

    def check_drafting(self) -> None:
        """Raise ``InvalidInput`` unless ``drafting`` is usable, and of free answers."""
        if self.drafting is None:
            return
        if self.task.options:
            raise InvalidInput("policy.drafting", "is for free answers, not for a closed set")
        self.drafting.check("policy.drafting")

    def to_bytes(self) -> bytes:
        """The bytes that are signed."""
        self.check_early_stop()
        self.check_drafting()
        self.check_self_checks()
        value: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "task": self.task.to_json(),
            "base_digest": self.base_digest,
            "adapter_digest": self.adapter_digest,
            "confidence": self.confidence.to_json(),
            "threshold": self.threshold,
            "certificate": self.certificate.to_json() if self.certificate else None,
        }
        if self.scores is not None:
            value["scores"] = self.scores.to_json()
        if self.gain is not None:
            value |= {"gain": self.gain.to_json(), "min_gain": self.min_gain}
        if self.early_stop is not None:
            value["early_stop"] = self.early_stop.to_json()
        if self.drafting is not None:
            value["drafting"] = self.drafting.to_json()
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what ``to_bytes`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields.from_bytes(data, "policy")
        if fields.number("format_version") != FORMAT_VERSION:
            raise InvalidInput("policy.format_version", f"is not {FORMAT_VERSION}; tune it again")
        certificate = fields.take("certificate")
        scores = fields.take("scores") if fields.given("scores") else None
        gain = fields.take("gain") if fields.given("gain") else None
        early_stop = fields.take("early_stop") if fields.given("early_stop") else None
        drafting = fields.take("drafting") if fields.given("drafting") else None
        policy = cls(
            task=Task.from_json(fields.take("task"), where="policy.task"),
            base_digest=fields.text("base_digest"),
            adapter_digest=fields.text("adapter_digest"),
            confidence=ConfidenceModel.from_json(fields.take("confidence")),
            threshold=fields.number_or_none("threshold", 0.0, 1.0),
            certificate=None if certificate is None else Certificate.from_json(certificate),
            scores=None if scores is None else ScoreReference.from_json(scores),
            gain=None if gain is None else GainModel.from_json(gain, "policy.gain"),
            min_gain=None if gain is None else fields.number_or_none("min_gain", -1.0, 1.0),
            early_stop=None if early_stop is None else EarlyStop.from_json(early_stop),
            drafting=None if drafting is None else Drafting.from_json(drafting),
        )
        fields.end()
        if (policy.threshold is None) != (policy.certificate is None):
            raise InvalidInput("policy.certificate", "must be present exactly when threshold is")
        policy.check_early_stop()
        policy.check_drafting()
        policy.check_self_checks()
        return policy


def decide(
    policy: Policy | None,
    answer: LocalAnswer,
    obstacles: tuple[str, ...] = (),
    vetoes: tuple[str, ...] = (),
    *,
    demoted: bool = False,
    stopped: bool = False,
) -> Decision:
    """Judge a local answer.

    Arguments:
        policy: a policy that covers the request and the model, or ``None``.
        obstacles: why the request may not leave the device, from ``cascade.constraints``; empty
            when it may. Not looked at where the answer is accepted.
        vetoes: what the answer failed, from ``cascade.checks``: it is then not accepted, whatever
            its confidence.
        demoted: the monitor withdrew the policy: its confidence is worth no more than none.
        stopped: the policy's rule for stopping early fired, so that the answer is not accepted,
            even if it is whole. Of a part there is neither confidence nor gain.
    """
    # The adapter may have been swapped between finding the policy and computing the answer.
    valid = policy is not None and policy.adapter_digest == answer.adapter_digest
    if policy is None or not valid or demoted:
        first = first_reason(None, None, policy=valid, demoted=demoted)
        return conclude(first, None, vetoes, obstacles)
    if answer.options is not None and answer.options.mode != policy.confidence.mode:
        return conclude((Reason.UNCERTIFIED_MODE,), None, vetoes, obstacles)
    confidence = policy.confidence.of(answer) if answer.whole else None
    gain = policy.gain.of(answer) if policy.gain is not None and answer.whole else None
    first = first_reason(confidence, policy.threshold, policy=True, stopped=stopped)
    return conclude(first, confidence, vetoes, obstacles, gain=gain, min_gain=policy.min_gain)


def first_reason(
    confidence: float | None,
    threshold: float | None,
    *,
    policy: bool,
    same_mode: bool = True,
    demoted: bool = False,
    stopped: bool = False,
) -> tuple[Reason, ...]:
    """What the numbers alone say of an answer.

    Arguments:
        confidence: ``None`` where something that it needs was not measured.
        policy: whether a policy covers the request and the model.
        same_mode: whether the answer was scored as the policy's calibration was.
        demoted: whether the monitor withdrew the policy.
        stopped: whether its rule for stopping early fired.
    """
    if not policy:
        return (Reason.UNCERTIFIED_TASK,)
    if demoted:
        return (Reason.POLICY_DEMOTED,)
    if not same_mode:
        return (Reason.UNCERTIFIED_MODE,)
    if stopped and (confidence is None or threshold is None or confidence >= threshold):
        return (Reason.STOPPED_EARLY,)
    if confidence is None:
        return (Reason.UNMEASURED,)
    if threshold is None:
        return (Reason.TARGET_INFEASIBLE,)
    return (Reason.CONFIDENT if confidence >= threshold else Reason.UNSURE,)


def conclude(
    first: tuple[str, ...],
    confidence: float | None,
    vetoes: tuple[str, ...] = (),
    obstacles: tuple[str, ...] = (),
    *,
    gain: float | None = None,
    min_gain: float | None = None,
) -> Decision:
    """The verdict: accepted where the numbers say so and nothing vetoes, else escalated where
    nothing stands in the way and there is enough to gain. What a vetoed answer leaves to gain, no
    model was fitted to."""
    if first == (Reason.CONFIDENT,) and not vetoes:
        return Decision(True, False, confidence, first, gain)
    little: tuple[str, ...] = ()
    if gain is not None and min_gain is not None and gain < min_gain and not vetoes:
        little = (Reason.LITTLE_GAIN,)
    reasons = (*first, *vetoes, *little, *obstacles)
    return Decision(False, not little and not obstacles, confidence, reasons, gain)


def obstacles_to_escalation(limits: Constraints, *, cluster: bool) -> tuple[Reason, ...]:
    """Why a request with these limits may never leave the device; empty when it may.

    Arguments:
        cluster: whether a cluster is configured.
    """
    return tuple(
        reason
        for reason, stands in (
            (Reason.NEVER_LEAVE, limits.data_class is DataClass.NEVER_LEAVE),
            (Reason.NO_CLUSTER, not cluster),
            (
                Reason.NO_TIER_ALLOWED,
                limits.max_remote_calls < 1 or limits.allowed_tiers == frozenset(),
            ),
        )
        if stands
    )


class PolicyStore:
    """Signed policies and ladders in a folder: ``<base digest>/<task id>.json`` beside ``.sig``.

    Policies are read once each and checked against the pinned publisher keys before use.
    """

    def __init__(self, folder: Path, trust: TrustStore) -> None:
        self._folder = folder
        self._trust = trust
        self._loaded: dict[str, Policy] = {}

    def install(self, policy: Policy, key: SigningKey) -> Path:
        """Sign ``policy`` and put it in the place of the one for the same task and base."""
        path = self._path(policy.base_digest, policy.task.task_id)
        data = policy.to_bytes()
        path.with_suffix(".sig").unlink(missing_ok=True)
        write_whole(path, data)
        write_whole(path.with_suffix(".sig"), key.sign(data))
        self._loaded.pop(str(path), None)
        return path

    def find(self, task_id: str, model: ModelInfo) -> Policy | None:
        """The policy for ``task_id`` on ``model``, or ``None``.

        Raises:
            Tampered, UnknownPublisher, InvalidInput: there is one that must not be used.
        """
        path = self._path(model.base_digest, task_id)
        if str(path) not in self._loaded:
            try:
                data, signature = path.read_bytes(), path.with_suffix(".sig").read_bytes()
            except FileNotFoundError:
                return None
            self._trust.verify(data, signature, what=f"policy {task_id}")
            self._loaded[str(path)] = _read(data)
        policy = self._loaded[str(path)]
        return policy if policy.adapter_digest == model.adapter_digest else None

    def refresh(self) -> None:
        """Read policies again when they are next asked for: others may have been installed."""
        self._loaded.clear()

    def _path(self, base_digest: str, task_id: str) -> Path:
        check_task_id(task_id)
        return self._folder / base_digest / f"{task_id}.json"


def _read(data: bytes) -> Policy:
    # Ladders build on policies, and few devices follow one.
    from cascade.ladder.device import DeviceRung
    from cascade.ladder.policy import LadderPolicy, is_ladder

    return (
        DeviceRung.of(LadderPolicy.from_bytes(data)) if is_ladder(data) else Policy.from_bytes(data)
    )


def check_task_id(task_id: str) -> None:
    """Raise ``InvalidInput`` unless ``task_id`` can name a policy."""
    if not _TASK_ID.fullmatch(task_id):
        raise InvalidInput("task", "must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
