"""What the store does for the gate: a judgement is written down before it is told, so that an
examination whose coordinator dies is not made again, and its policies can be rolled out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

from cloud.federation.database import Transaction
from cloud.federation.gate.evaluation import Findings
from cloud.federation.seams import Verdict


@dataclass(frozen=True, slots=True)
class Judgement:
    """The gate's word on a candidate.

    Arguments:
        policies: digests of the policies in the registry that were certified for it.
        findings: what the word rests on.
    """

    round: int
    candidate_digest: str
    verdict: Verdict
    policies: tuple[str, ...]
    findings: Findings


def put(tx: Transaction, judgement: Judgement) -> None:
    """Write a judgement down; the first one of a candidate stays."""
    tx.run(
        "INSERT INTO judgements VALUES (?, ?, ?, ?, ?) ON CONFLICT (candidate_digest) DO NOTHING",
        judgement.candidate_digest,
        judgement.round,
        judgement.verdict,
        json.dumps(judgement.policies),
        judgement.findings.to_bytes().decode(),
    )


def of(tx: Transaction, candidate_digest: str) -> Judgement | None:
    """The judgement of a candidate, if there is one."""
    row = tx.one(
        "SELECT round, candidate_digest, verdict, policies, findings FROM judgements "
        "WHERE candidate_digest = ?",
        candidate_digest,
    )
    if row is None:
        return None
    return Judgement(
        int(row[0]),
        str(row[1]),
        cast(Verdict, row[2]),
        tuple(json.loads(row[3])),
        Findings.from_bytes(str(row[4]).encode()),
    )
