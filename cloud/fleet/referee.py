"""How good an adapter is: its answers on rows that no device sees, and the policy certified there.

An adapter is judged once; what it is worth depends on nothing but its numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cascade.calibrate import fit_platt
from cascade.certify import certify, plan_grid
from cascade.confidence import ConfidenceModel, Platt
from cascade.errors import InfeasibleTarget, InvalidInput
from cascade.metrics import ece, wilson_interval
from cascade.rows import Bools, Floats
from cascade.task import Task
from cloud.federation.rounds import Round
from cloud.federation.seams import Verdict
from cloud.fleet.device import ServedPolicy
from cloud.fleet.hosts import Hosts, Pairs
from cloud.fleet.plan import FleetPlan
from cloud.fleet.rows import FleetRow, Parts


@dataclass(frozen=True, slots=True)
class Standing:
    """How an adapter does.

    Arguments:
        policy: what it is served with.
        develop_accuracy: of the develop part, by which candidates are compared.
        accuracy: of all answers on the test part.
        coverage: share of the certify part that the certified threshold keeps; 0 without one.
        escalation: share of the test part that is below it; 1 without one.
        kept, wrong: test answers that are kept, and those of them that are wrong.
        ece: of the confidence on the test part.
        out_of_scope: share of the inputs out of scope that is escalated; ``None`` without any.
    """

    policy: ServedPolicy
    develop_accuracy: float
    accuracy: float
    coverage: float
    escalation: float
    kept: int
    wrong: int
    ece: float
    out_of_scope: float | None

    @property
    def risk(self) -> tuple[float, float, float] | None:
        """Share of the kept test answers that is wrong, with its 95 % interval (Wilson)."""
        if not self.kept:
            return None
        return (self.wrong / self.kept, *wilson_interval(self.wrong, self.kept))


class Referee:
    """Judges adapters.

    Arguments:
        hosts: compute the answers.
    """

    def __init__(self, hosts: Hosts, plan: FleetPlan, task: Task, parts: Parts) -> None:
        self._hosts, self._plan, self._task, self._parts = hosts, plan, task, parts
        self._known: dict[str, Standing] = {}

    def standing(self, digest: str, pairs: Pairs) -> Standing:
        """How the adapter of this digest does."""
        if digest not in self._known:
            self._known[digest] = self._judged(pairs)
        return self._known[digest]

    def _judged(self, pairs: Pairs) -> Standing:
        plan, parts = self._plan, self._parts
        develop, develop_right = self._answers(parts.develop, pairs)
        scores, right = self._answers(parts.certify, pairs)
        test, test_right = self._answers(parts.test, pairs)
        outside, _ = self._answers(parts.out_of_scope, pairs)
        confidence, coverage, threshold = _fitted(develop, develop_right), 0.0, None
        try:
            grid = plan_grid(
                confidence.batch(develop),
                develop_right,
                rows=len(scores),
                alpha=plan.alpha,
                delta=plan.delta,
            )
            certificate = certify(
                confidence.batch(scores), right, alpha=plan.alpha, delta=plan.delta, grid=grid
            )
        except InfeasibleTarget:
            pass  # nothing can be promised: everything escalates
        else:
            threshold = certificate.threshold
            coverage = certificate.n_accepted / certificate.n
        policy = ServedPolicy(confidence, threshold)
        kept = policy.keeps(test)
        return Standing(
            policy=policy,
            develop_accuracy=float(develop_right.mean()),
            accuracy=float(test_right.mean()),
            coverage=coverage,
            escalation=float(1 - kept.mean()),
            kept=int(kept.sum()),
            wrong=int((kept & ~test_right).sum()),
            ece=ece(confidence.batch(test), test_right),
            out_of_scope=float(1 - policy.keeps(outside).mean()) if len(outside) else None,
        )

    def _answers(self, rows: Sequence[FleetRow], pairs: Pairs) -> tuple[Floats, Bools]:
        """Raw scores, and whether the best answer is right."""
        found = self._hosts.probabilities(rows, pairs) if rows else []
        scores = np.array([float(each.max()) for each in found]).clip(0, 1)
        options = self._task.options
        right = [options[int(p.argmax())] == row.answer for p, row in zip(found, rows, strict=True)]
        return scores, np.array(right, bool)


def _fitted(scores: Floats, right: Bools) -> ConfidenceModel:
    """The confidence of an answer; the raw score itself where all answers are alike."""
    try:
        return fit_platt(scores, right)
    except InvalidInput:
        return ConfidenceModel(Platt(a=1.0, b=0.0))


class FleetGate:
    """Lets a candidate through unless its accuracy on the develop part is worse than that of the
    adapter that its round started from.

    Arguments:
        most_worse: by how much it may be.
        judged: a round's adapters, by digest.
    """

    def __init__(self, most_worse: float, judged: Judged) -> None:
        self._most_worse = most_worse
        self._judged = judged

    async def judge(self, candidate: Round) -> tuple[Verdict, str]:
        """See ``cloud.federation.seams.Gate``."""
        if candidate.candidate_digest is None:
            return "rejected", "it has no candidate"
        after = await asyncio.to_thread(self._judged, candidate.candidate_digest)
        before = await asyncio.to_thread(self._judged, candidate.adapter_digest)
        change = after.develop_accuracy - before.develop_accuracy
        said = f"accuracy of the develop part {change:+.3f}"
        return ("rejected" if change < -self._most_worse else "approved"), said


Judged = Callable[[str], Standing]
