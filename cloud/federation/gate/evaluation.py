"""The whole examination of a candidate: run it and what it is compared with, certify policies anew,
ask the questions of ``comparing``. Blocking, and heavy: it runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from cascade.checks import Check
from cascade.errors import CascadeError, InvalidInput
from cascade.events import DEVICE
from cascade.pair import pair
from cascade.records import RecordSet
from cascade.request import Message
from cascade.rows import Bools
from cascade.signing import TrustStore
from cascade.strict import Fields
from cascade.tune import Aim, Modelling, Tuned, tune
from cascade.verdicts import confidences, judge, ranked
from cloud.federation.adapters import Adapters, StartingAdapter
from cloud.federation.gate import comparing
from cloud.federation.gate.comparing import Finding
from cloud.federation.gate.config import GateConfig
from cloud.federation.gate.rows import Canary, GateRows, TaskRows, read_rows
from cloud.federation.gate.running import Subject, fetched
from cloud.registry import Registry


@dataclass(frozen=True, slots=True)
class Examination:
    """What is to be examined.

    Arguments:
        candidate: digest of the adapter.
        others: digests of those that it is compared with; at least one.
        registry: URL.
        folder: where bundles and records are kept between examinations.
        trust: folder of the keys that may have signed the bundle.
    """

    config: GateConfig
    candidate: str
    others: tuple[str, ...]
    registry: str
    folder: Path
    trust: Path


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of it.

    Arguments:
        findings: every question; the candidate is good where all passed.
        policies: the bytes of one policy a task for the candidate, not signed yet.
    """

    findings: tuple[Finding, ...]
    policies: tuple[bytes, ...]

    @property
    def passed(self) -> bool:
        """Whether the candidate is good enough."""
        return all(each.passed for each in self.findings)

    @property
    def why(self) -> str:
        """The verdict's reason in a line: what failed, or what passed."""
        said = [each for each in self.findings if not each.passed] or list(self.findings)
        return " · ".join(
            f"{each.what}{f' of {each.task}' if each.task else ''}: {each.reason}" for each in said
        )

    def to_bytes(self) -> bytes:
        """As the store keeps it."""
        value = {
            "findings": [each.to_json() for each in self.findings],
            "policies": [each.decode() for each in self.policies],
        }
        return json.dumps(value).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what ``to_bytes`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields.from_bytes(data, "findings")
        listed = fields.take("findings")
        policies = fields.texts("policies")
        fields.end()
        if not isinstance(listed, list):
            raise InvalidInput("findings.findings", "must be a list")
        return cls(
            tuple(Finding.from_json(item) for item in listed),
            tuple(each.encode() for each in policies),
        )


def examine(examination: Examination) -> Findings:
    """Examine a candidate.

    Raises:
        NotFound, InvalidInput, UnknownPublisher, Tampered, BundleError: something that the
            configuration names is not there or cannot be used: this says nothing of the candidate.
        CascadeError: a package is missing.
    """
    config, registry = examination.config, Registry(examination.registry)
    rows = read_rows(config)
    adapters = Adapters(registry)
    bundle = fetched(
        registry,
        config.bundle,
        examination.folder / "bundles",
        TrustStore(examination.trust),
    )
    candidate = adapters.read(examination.candidate)
    others = [adapters.read(digest) for digest in examination.others]
    subject = Subject(bundle, examination.folder / "records", threads=config.threads)
    try:
        subject.wear(candidate)
    except CascadeError as problem:
        return Findings((_unfit(candidate, str(problem)),), ())
    return asyncio.run(_examine(config, rows, subject, candidate, others))


async def _examine(
    config: GateConfig,
    rows: GateRows,
    subject: Subject,
    candidate: StartingAdapter,
    others: list[StartingAdapter],
) -> Findings:
    findings: list[Finding] = []
    policies: list[bytes] = []
    # Cheap questions first: who fails at canaries need not be certified.
    if rows.canaries:
        checks = {name: each.check() for name, each in config.checks.items()}
        subject.wear(candidate)
        failed = tuple(each.id for each in rows.canaries if not _holds(subject, each, checks))
        findings.append(
            comparing.canaries(failed, len(rows.canaries), most_failed=config.most_failed)
        )
        if not findings[-1].passed:
            return Findings(tuple(findings), ())
    for task in rows.tasks:
        mine = await _Standing.of(subject, candidate, task)
        for other in others:
            theirs = await _Standing.of(subject, other, task)
            findings += _compared(task, mine, theirs, f"{other.manifest.name} {other.digest[:12]}…")
        policies.append(mine.tuned.policy.to_bytes())
    return Findings(tuple(findings), tuple(policies))


@dataclass(frozen=True, slots=True)
class _Standing:
    """How one adapter does at one task: its records, and the policy that follows from them."""

    held_out: RecordSet
    out_of_scope: RecordSet | None
    tuned: Tuned

    @classmethod
    async def of(cls, subject: Subject, adapter: StartingAdapter, rows: TaskRows) -> _Standing:
        gate, made = rows.gate, dict[str, RecordSet]()
        for name, part in rows.parts.items():
            made[name] = await subject.records(
                adapter,
                part,
                rows.task,
                grade="" if name == "out_of_scope" else gate.grader,
                max_tokens=gate.max_tokens,
            )
        tuned = tune(
            pair(made["develop"], local=DEVICE, alone=True),
            pair(made["certify"], local=DEVICE, alone=True),
            (Aim("selective_risk", gate.risk),),
            delta=gate.certify_delta,
            task=rows.task,
            modelling=Modelling(calibrator=gate.calibrator),
        )
        return cls(made["held_out"], made.get("out_of_scope"), tuned)

    @property
    def right(self) -> Bools:
        """Of the held-out rows; an answer that failed is wrong."""
        return np.asarray(self.held_out.correct(DEVICE) == 1)

    @property
    def kept(self) -> float | None:
        """Share of the certify rows that the policy keeps; ``None`` without a certificate."""
        certificate = self.tuned.policy.certificate
        return None if certificate is None else certificate.n_accepted / certificate.n


def _compared(rows: TaskRows, mine: _Standing, theirs: _Standing, against: str) -> list[Finding]:
    gate, task = rows.gate, rows.task.task_id
    refusal = mine.tuned.refusal
    findings = [
        comparing.accuracy(
            mine.right,
            theirs.right,
            most_worse=gate.most_worse,
            delta=gate.delta,
            task=task,
            against=against,
        ),
        *comparing.calibration(
            ranked(confidences(mine.tuned.policy.confidence, mine.held_out, DEVICE)),
            mine.right,
            ranked(confidences(theirs.tuned.policy.confidence, theirs.held_out, DEVICE)),
            theirs.right,
            most_brier_rise=gate.most_brier_rise,
            most_ece_rise=gate.most_ece_rise,
            task=task,
            against=against,
        ),
        comparing.certified(
            mine.kept,
            refusal.reason if refusal else "",
            theirs.kept,
            most_less_kept=gate.most_less_kept,
            task=task,
            against=against,
        ),
    ]
    if mine.out_of_scope is not None and theirs.out_of_scope is not None:
        findings.append(
            comparing.out_of_scope(
                judge(mine.tuned.policy, mine.out_of_scope, DEVICE).escalated,
                judge(theirs.tuned.policy, theirs.out_of_scope, DEVICE).escalated,
                most_escape=gate.most_escape,
                task=task,
                against=against,
            )
        )
    return findings


def _holds(subject: Subject, canary: Canary, checks: dict[str, Check]) -> bool:
    """Whether the answer passes and fails what it must. One that cannot be had, or on which a check
    breaks, has not."""
    prompt = (Message("user", canary.prompt),)
    try:
        if canary.options:
            text = subject.model.choose(prompt, canary.options).text
        else:
            text = subject.model.generate(prompt, max_tokens=canary.max_tokens).text
        passed = all(checks[name](text) for name in canary.must)
        return passed and not any(checks[name](text) for name in canary.must_not)
    except Exception:
        return False


def _unfit(candidate: StartingAdapter, why: str) -> Finding:
    return Finding("fit", "", "", 0.0, None, 0.0, 0.0, False, f"{candidate.manifest.name}: {why}")
