"""What was proven about a threshold: plain values that travel inside a policy.

The proof itself is ``cascade.certify``; a device only reads what is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self, cast, get_args

from cascade.errors import InvalidInput
from cascade.strict import Fields

_MAX_ROWS = 10**9

Kind = Literal[
    "selective_risk",
    "excess_error",
    "net_error",
    "escalation_share",
    "cost_usd",
    "deadline_misses",
]
"""What is bounded; ``cascade.certify`` has a function of that name for each."""

Method = Literal["clopper_pearson", "hoeffding_bentkus", "betting"]
"""Where the p-values come from; see ``cascade.certify.p_values``."""

FamilyName = Literal["fixed_sequence", "holm", "bonferroni"]
"""How many thresholds were tested at once; see ``cascade.certify.families``."""


@dataclass(frozen=True, slots=True)
class Promise:
    """One target at the certified threshold: mean loss ≤ ``alpha``.

    Arguments:
        kind: which loss is meant.
        alpha: its largest tolerated mean, strictly between ``low`` and ``high``.
        low, high: the range of the loss of one row; 0 and 1 unless it is in dollars or signed.
        method: how the p-value was computed.
        rows: the rows over which the mean goes: those accepted for the selective risk, else all.
        observed: the mean loss among them.
        upper: one-sided 1 - delta bound of the mean at this threshold alone; ≤ alpha. It describes;
            what is guaranteed over the whole search is alpha.
        p_value: of "the mean loss at this threshold is above alpha".
    """

    kind: Kind
    alpha: float
    low: float
    high: float
    method: Method
    rows: int
    observed: float
    upper: float
    p_value: float

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal promise."""
        return {
            "kind": self.kind,
            "alpha": self.alpha,
            "low": self.low,
            "high": self.high,
            "method": self.method,
            "rows": self.rows,
            "observed": self.observed,
            "upper": self.upper,
            "p_value": self.p_value,
        }

    @classmethod
    def from_json(cls, value: object, *, where: str = "promise") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown, unusable or contradicts another; it is named.
        """
        fields = Fields(value, where)
        low, high = fields.number("low"), fields.number("high")
        if low >= high:
            raise InvalidInput(fields.path("high"), "is not above low")
        promise = cls(
            kind=cast(Kind, fields.choice("kind", get_args(Kind))),
            alpha=fields.number("alpha", low, high),
            low=low,
            high=high,
            method=cast(Method, fields.choice("method", get_args(Method))),
            rows=fields.integer("rows", 1, _MAX_ROWS),
            observed=fields.number("observed", low, high),
            upper=fields.number("upper", low, high),
            p_value=fields.number("p_value", 0, 1),
        )
        fields.end()
        return promise


@dataclass(frozen=True, slots=True)
class Certificate:
    """P(some promise does not hold at ``threshold``) ≤ delta, over draws of the certify part.

    The statement is about the procedure: of many certify parts drawn alike, at most a share delta
    lead to a threshold at which some mean loss is above its alpha, on inputs like those of the
    certify part. It promises nothing about one particular test set, nor about inputs of another
    kind.

    Arguments:
        promises: what holds, one or more, each of its own kind.
        delta: the tolerated probability of certifying wrongly, in (0, 1).
        n: labelled rows of the certify part.
        n_accepted: those whose confidence reaches the threshold, 0 … n.
        threshold: the lowest confidence that is answered locally, in [0, 1].
        family: how the thresholds were tested together.
        starts: places in the grid where fixed sequences began, rising; empty for other families.
        data_digest: sha256 over the certify rows, in any order; see ``cascade.certify``.
        grid_digest: sha256 over the thresholds in the order of test.
        grid_size: how many there are.
    """

    promises: tuple[Promise, ...]
    delta: float
    n: int
    n_accepted: int
    threshold: float
    family: FamilyName
    starts: tuple[int, ...]
    data_digest: str
    grid_digest: str
    grid_size: int

    @property
    def coverage(self) -> float:
        """Share of the certify rows that are answered locally, in [0, 1]."""
        return self.n_accepted / self.n

    @property
    def p_value(self) -> float:
        """Of "some promise does not hold at this threshold": the largest of the promises'."""
        return max(promise.p_value for promise in self.promises)

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal certificate."""
        return {
            "promises": [promise.to_json() for promise in self.promises],
            "delta": self.delta,
            "n": self.n,
            "n_accepted": self.n_accepted,
            "coverage": self.coverage,
            "threshold": self.threshold,
            "family": self.family,
            "starts": list(self.starts),
            "data_digest": self.data_digest,
            "grid_digest": self.grid_digest,
            "grid_size": self.grid_size,
        }

    @classmethod
    def from_json(cls, value: object, *, where: str = "certificate") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown, unusable or contradicts another; it is named.
        """
        fields = Fields(value, where)
        n = fields.integer("n", 1, _MAX_ROWS)
        grid_size = fields.integer("grid_size", 1, _MAX_ROWS)
        certificate = cls(
            promises=_promises(fields.take("promises"), f"{where}.promises"),
            delta=fields.number("delta", 0, 1),
            n=n,
            n_accepted=fields.integer("n_accepted", 0, n),
            threshold=fields.number("threshold", 0, 1),
            family=cast(FamilyName, fields.choice("family", get_args(FamilyName))),
            starts=_starts(fields.take("starts"), grid_size, f"{where}.starts"),
            data_digest=fields.sha256("data_digest"),
            grid_digest=fields.sha256("grid_digest"),
            grid_size=grid_size,
        )
        coverage = fields.number("coverage", 0, 1)
        fields.end()
        if abs(coverage - certificate.coverage) > 1e-9:
            raise InvalidInput(f"{where}.coverage", "is not n_accepted / n")
        if bool(certificate.starts) != (certificate.family == "fixed_sequence"):
            raise InvalidInput(f"{where}.starts", "must be given for a fixed_sequence, and only so")
        for i, promise in enumerate(certificate.promises):
            if promise.p_value > certificate.delta:
                raise InvalidInput(
                    f"{where}.promises[{i}].p_value", "is above delta, so nothing was certified"
                )
            counted = certificate.n_accepted if promise.kind == "selective_risk" else n
            if promise.rows != counted:
                raise InvalidInput(f"{where}.promises[{i}].rows", f"is not {counted}")
        return certificate


@dataclass(frozen=True, slots=True)
class GroupCertificate:
    """All certificates of the groups hold at once with probability ≥ 1 - delta.

    Arguments:
        delta: the tolerated probability that any of them is wrong, in (0, 1). The groups' own
            deltas sum to at most this.
        certificates: by group. A group that is not in here is not promised anything.
        refused: by group, why there is none and how many labels of that group would be needed (None
            where no number would do).
    """

    delta: float
    certificates: Mapping[str, Certificate]
    refused: Mapping[str, Refusal]

    def threshold(self, group: str) -> float | None:
        """The lowest confidence to accept for ``group``; ``None``: escalate all, also for a group
        that was never seen."""
        certificate = self.certificates.get(group)
        return certificate.threshold if certificate else None

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal value."""
        return {
            "delta": self.delta,
            "certificates": {name: c.to_json() for name, c in self.certificates.items()},
            "refused": {
                name: {"reason": refusal.reason, "labels_needed": refusal.labels_needed}
                for name, refusal in self.refused.items()
            },
        }

    @classmethod
    def from_json(cls, value: object, *, where: str = "group_certificate") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown, unusable or contradicts another; it is named.
        """
        fields = Fields(value, where)
        delta = fields.number("delta", 0, 1)
        certificates = {
            name: Certificate.from_json(item, where=f"{where}.certificates.{name}")
            for name, item in _named(fields.take("certificates"), f"{where}.certificates").items()
        }
        refused = {
            name: _refusal(item, f"{where}.refused.{name}")
            for name, item in _named(fields.take("refused"), f"{where}.refused").items()
        }
        fields.end()
        if both := certificates.keys() & refused.keys():
            raise InvalidInput(f"{where}.refused.{min(both)}", "has a certificate too")
        if sum(certificate.delta for certificate in certificates.values()) > delta * (1 + 1e-9):
            raise InvalidInput(f"{where}.delta", "is below the sum of the groups' own")
        return cls(delta, certificates, refused)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a group has no certificate, in one line, and how many labels of it would be needed."""

    reason: str
    labels_needed: int | None


def _promises(value: object, where: str) -> tuple[Promise, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidInput(where, "must be a list of at least one promise")
    promises = tuple(Promise.from_json(item, where=f"{where}[{i}]") for i, item in enumerate(value))
    if len({promise.kind for promise in promises}) < len(promises):
        raise InvalidInput(where, "has two of one kind")
    return promises


def _starts(value: object, grid_size: int, where: str) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or not all(type(item) is int and 0 <= item < grid_size for item in value)
        or any(a >= b for a, b in pairwise(value))
    ):
        raise InvalidInput(where, "must be a strictly rising list of places in the grid")
    return tuple(value)


def _named(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise InvalidInput(where, "must be a JSON object")
    return value


def _refusal(value: object, where: str) -> Refusal:
    fields = Fields(value, where)
    needed = fields.take("labels_needed")
    if needed is not None and (type(needed) is not int or needed < 1):
        raise InvalidInput(fields.path("labels_needed"), "must be a whole number above 0, or null")
    refusal = Refusal(fields.text("reason"), needed)
    fields.end()
    return refusal
