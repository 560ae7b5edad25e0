"""How good an adapter is: its answers on rows that no device sees, and the policy certified there.

An adapter is judged once; what it is worth depends on nothing but its numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from cascade.calibrate import fit_platt
from cascade.certify import Target, certify_targets, excess_error, plan_targets, selective_risk
from cascade.confidence import ConfidenceModel, Platt
from cascade.errors import InfeasibleTarget, InvalidInput
from cascade.metrics import ece, wilson_interval
from cascade.rows import Bools, Floats
from cascade.task import Task
from cloud.federation.gate.comparing import accuracy
from cloud.federation.rounds import Round
from cloud.federation.seams import Verdict
from cloud.fleet.plan import FleetPlan
from cloud.fleet.rows import FleetRow, Parts
from cloud.fleet.served import Probabilities, ServedPolicy, Weights, raw_scores


@dataclass(frozen=True, slots=True)
class Standing:
    """How an adapter does.

    Arguments:
        policy: what it is served with.
        develop_right: whether each answer to the develop part is, by which candidates are compared.
        accuracy: of all answers on the test part.
        coverage: share of the certify part that the policy keeps.
        escalation: share of the test part that it escalates; 1 without a certified threshold.
        kept: test answers that are kept.
        wrong, counted: the plan's target on the test part: what it counts, among how many rows.
        ece: of the confidence on the test part.
        out_of_scope: share of the inputs out of scope that is escalated; ``None`` without any.
        end_to_end: share of the test part that is right in the end: kept answers by the device,
            the others by the teacher, or the user, who is always right.
        teacher: the same of always asking the teacher; ``None`` where users say what is right.
    """

    policy: ServedPolicy
    develop_right: Bools
    accuracy: float
    coverage: float
    escalation: float
    kept: int
    wrong: int
    counted: int
    ece: float
    out_of_scope: float | None
    end_to_end: float
    teacher: float | None

    @property
    def risk(self) -> tuple[float, float, float] | None:
        """What the target bounds on the test part, with its 95 % interval (Wilson)."""
        if not self.counted:
            return None
        return (self.wrong / self.counted, *wilson_interval(self.wrong, self.counted))


@dataclass(frozen=True, slots=True)
class _Answers:
    """To some rows.

    Arguments:
        scores: raw ones, see ``raw_scores``.
        right: whether the best answer is.
        taught: whether the teacher's, or else the user's, answer is.
    """

    scores: Floats
    right: Bools
    taught: Bools

    def target(self, plan: FleetPlan) -> Target:
        """What is to be certified of them."""
        if plan.target == "excess":
            return excess_error(self.right, self.taught, alpha=plan.alpha)
        return selective_risk(self.right, alpha=plan.alpha)


_AT_ONCE: Final = 100
"""Rows between two words about how far it is; reading one for the first time takes a tenth of a
second."""


_NOTHING: Final = 1e-9
"""Of a difference: rounding."""


class Answering(Protocol):
    """What computes answers: ``cloud.fleet.hosts.Hosts``, for one."""

    def probabilities(self, rows: Sequence[FleetRow], weights: Weights) -> list[Probabilities]:
        """Of the task's options, for each row."""
        ...


class Referee:
    """Judges adapters.

    Arguments:
        hosts: compute the answers.
        watch: told how many of the rows of an adapter have been answered, of how many.
    """

    def __init__(
        self,
        hosts: Answering,
        plan: FleetPlan,
        task: Task,
        parts: Parts,
        *,
        watch: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._hosts, self._plan, self._task, self._parts = hosts, plan, task, parts
        self._watch = watch
        self._known: dict[str, Standing] = {}
        self._first: ServedPolicy | None = None
        self.first: str | None = None
        """Digest of the adapter whose policy stays, where none is certified anew."""

    def standing(self, digest: str, weights: Weights) -> Standing:
        """How the adapter of this digest does."""
        if digest not in self._known:
            found = self._judged(weights)
            self._known[digest] = found
            stays = not self._plan.recertify and self._first is None
            if stays and found.policy.threshold is not None:
                self._first, self.first = found.policy, digest
        return self._known[digest]

    def _judged(self, weights: Weights) -> Standing:
        parts = self._parts
        all_rows = (parts.develop, parts.certify, parts.test, parts.out_of_scope)
        total = sum(map(len, all_rows))
        found: list[_Answers] = []
        for rows in all_rows:
            found.append(self._answers(rows, weights, sum(len(f.scores) for f in found), total))
        develop, certify, test, outside = found
        policy = self._first or self._certified(develop, certify)
        kept = policy.keeps(test.scores)
        bad = kept & ~test.right
        counted = int(kept.sum())
        if self._plan.target == "excess":
            bad, counted = bad & test.taught, len(kept)
        known = all(row.teacher for row in parts.test)
        return Standing(
            policy=policy,
            develop_right=develop.right,
            accuracy=float(test.right.mean()),
            coverage=float(policy.keeps(certify.scores).mean()),
            escalation=float(1 - kept.mean()),
            kept=int(kept.sum()),
            wrong=int(bad.sum()),
            counted=counted,
            ece=ece(policy.confidence.batch(test.scores), test.right),
            out_of_scope=(
                float(1 - policy.keeps(outside.scores).mean()) if len(outside.scores) else None
            ),
            end_to_end=float(np.where(kept, test.right, test.taught).mean()),
            teacher=float(test.taught.mean()) if known else None,
        )

    def _certified(self, develop: _Answers, certify: _Answers) -> ServedPolicy:
        plan, confidence = self._plan, _fitted(develop.scores, develop.right)
        seen = confidence.batch(develop.scores)
        try:
            grid = plan_targets(
                seen, [develop.target(plan)], rows=len(certify.scores), delta=plan.delta
            )
            found = certify_targets(
                confidence.batch(certify.scores),
                [certify.target(plan)],
                delta=plan.delta,
                grid=grid,
            )
        except InfeasibleTarget:
            return ServedPolicy(confidence, None)  # nothing can be promised: everything escalates
        return ServedPolicy(confidence, found.threshold)

    def _answers(
        self, rows: Sequence[FleetRow], weights: Weights, before: int, total: int
    ) -> _Answers:
        found: list[Probabilities] = []
        for start in range(0, len(rows), _AT_ONCE):
            self._watch(before + start, total)
            found += self._hosts.probabilities(rows[start : start + _AT_ONCE], weights)
        options = self._task.options
        best = [options[int(each.argmax())] for each in found]
        return _Answers(
            raw_scores(self._task, found),
            np.array([said == row.answer for said, row in zip(best, rows, strict=True)], bool),
            np.array([row.teacher in ("", row.answer) for row in rows], bool),
        )


def _fitted(scores: Floats, right: Bools) -> ConfidenceModel:
    """The confidence of an answer; the raw score itself where all answers are alike."""
    try:
        return fit_platt(scores, right)
    except InvalidInput:
        return ConfidenceModel(Platt(a=1.0, b=0.0))


class FleetGate:
    """Lets a candidate through unless it is worse than the adapter that its round started from: in
    its accuracy on the develop part (or unless it is *shown* not to be, with ``gate_delta``), in
    what the policy certified for it keeps, or, where the plan asks, in what it escalates of the
    inputs that are out of scope.

    Arguments:
        plan: by how much it may be.
        judged: a round's adapters, by digest.
    """

    def __init__(self, plan: FleetPlan, judged: Judged) -> None:
        self._plan = plan
        self._judged = judged

    async def judge(self, candidate: Round) -> tuple[Verdict, str]:
        """See ``cloud.federation.seams.Gate``."""
        if candidate.candidate_digest is None:
            return "rejected", "it has no candidate"
        after = await asyncio.to_thread(self._judged, candidate.candidate_digest)
        before = await asyncio.to_thread(self._judged, candidate.adapter_digest)
        plan = self._plan
        if after.policy.threshold is None and before.policy.threshold is not None:
            return "rejected", "no policy could be certified for it"
        worse, said = self._worse(after, before)
        if plan.recertify:
            less = before.coverage - after.coverage
            said += f", kept of the certify part {-less:+.3f}"
            worse = worse or less > plan.most_less_kept
        mine, theirs = after.out_of_scope, before.out_of_scope
        if plan.most_escape is not None and mine is not None and theirs is not None:
            escaped = theirs - mine
            said += f", escalated of what is out of scope {-escaped:+.3f}"
            worse = worse or escaped > plan.most_escape + _NOTHING
        return ("rejected" if worse else "approved"), said

    def _worse(self, after: Standing, before: Standing) -> tuple[bool, str]:
        plan, mine, theirs = self._plan, after.develop_right, before.develop_right
        change = float(mine.mean() - theirs.mean())
        said = f"accuracy of the develop part {change:+.3f}"
        if plan.gate_delta is None:
            return change < -plan.most_worse, said
        shown = accuracy(
            mine, theirs, most_worse=plan.most_worse, delta=plan.gate_delta, task="", against=""
        )
        return not shown.passed, f"{said}, {shown.reason}"


Judged = Callable[[str], Standing]
