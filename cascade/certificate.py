"""What was proven about a threshold: a plain value that travels inside a policy.

The proof itself is ``cascade.certify``; a device only reads what is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from cascade.errors import InvalidInput
from cascade.strict import Fields

_MAX_ROWS = 10**9

Method = Literal["fixed_sequence_clopper_pearson"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """P(selective risk > alpha) ≤ delta, over draws of the certify part.

    Selective risk is the probability that an answer is wrong, given that its confidence reaches
    ``threshold``, on inputs like those of the certify part. The statement is about the procedure:
    of many certify parts drawn alike, at most a share delta lead to a threshold whose risk is above
    alpha. It promises nothing about one particular test set, nor about inputs of another kind.

    Arguments:
        alpha: the largest tolerated selective risk, in (0, 1).
        delta: the tolerated probability of certifying wrongly, in (0, 1).
        n: labelled rows of the certify part.
        n_accepted: those whose confidence reaches the threshold, 1 … n.
        errors: those of the accepted that are wrong, 0 … n_accepted.
        threshold: the lowest confidence that is answered locally, in [0, 1].
        p_value: exact p-value of "the risk at this threshold is above alpha"; ≤ delta.
        risk_upper: one-sided 1 - delta Clopper-Pearson bound at this threshold alone; ≤ alpha. It
            describes; what is guaranteed over the whole search is alpha.
        data_digest: sha256 over the certify rows, in any order; see ``cascade.certify``.
        grid_digest: sha256 over the thresholds in the order of test.
        grid_size: how many there are.
        method: how it was tested.
    """

    alpha: float
    delta: float
    n: int
    n_accepted: int
    errors: int
    threshold: float
    p_value: float
    risk_upper: float
    data_digest: str
    grid_digest: str
    grid_size: int
    method: Method = "fixed_sequence_clopper_pearson"

    @property
    def coverage(self) -> float:
        """Share of the certify rows that are answered locally, in (0, 1]."""
        return self.n_accepted / self.n

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal certificate."""
        return {
            "method": self.method,
            "alpha": self.alpha,
            "delta": self.delta,
            "n": self.n,
            "n_accepted": self.n_accepted,
            "errors": self.errors,
            "threshold": self.threshold,
            "coverage": self.coverage,
            "p_value": self.p_value,
            "risk_upper": self.risk_upper,
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
        fields.choice("method", ("fixed_sequence_clopper_pearson",))
        n = fields.integer("n", 1, _MAX_ROWS)
        n_accepted = fields.integer("n_accepted", 1, n)
        certificate = cls(
            alpha=fields.number("alpha", 0, 1),
            delta=fields.number("delta", 0, 1),
            n=n,
            n_accepted=n_accepted,
            errors=fields.integer("errors", 0, n_accepted),
            threshold=fields.number("threshold", 0, 1),
            p_value=fields.number("p_value", 0, 1),
            risk_upper=fields.number("risk_upper", 0, 1),
            data_digest=fields.sha256("data_digest"),
            grid_digest=fields.sha256("grid_digest"),
            grid_size=fields.integer("grid_size", 1, _MAX_ROWS),
        )
        coverage = fields.number("coverage", 0, 1)
        fields.end()
        if abs(coverage - certificate.coverage) > 1e-9:
            raise InvalidInput(f"{where}.coverage", "is not n_accepted / n")
        if certificate.p_value > certificate.delta:
            raise InvalidInput(f"{where}.p_value", "is above delta, so nothing was certified")
        return certificate
