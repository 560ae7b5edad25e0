"""What one run of the demo found: plain values, and the JSON object made of them.

How they are measured is ``cascade.cli.demo.run``; how they are shown,
``cascade.cli.demo.report``. Rates are in [0, 1], intervals are 95 % unless it says otherwise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cascade.metrics import DeferralCurve, PairedDifference

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One way to answer the test part: device only, cascade, or cloud only.

    Arguments:
        accuracy: share of right answers.
        accuracy_ci: its Wilson interval.
        local_share: share answered by the device.
        p50_ms, p95_ms: percentiles of the wall time of one request, in milliseconds.
        bytes_up: mean bytes sent to the cluster by a request.
        cloud_tokens: mean tokens read and written by the cluster for a request.
        cost_usd: mean price of a request by the illustrative price list, in US dollars.
        n: requests.
    """

    accuracy: float
    accuracy_ci: Interval
    local_share: float
    p50_ms: float
    p95_ms: float
    bytes_up: float
    cloud_tokens: float
    cost_usd: float
    n: int


@dataclass(frozen=True, slots=True)
class CertificateResult:
    """What was certified, and what the test part then showed.

    Arguments:
        alpha: tolerated error among local answers.
        delta: tolerated probability of certifying wrongly.
        n: labelled rows of the certify part.
        feasible: whether any threshold passed. If not, everything is escalated.
        coverage: share of the certify rows answered locally; 0 if infeasible.
        threshold: lowest confidence answered locally; None if infeasible.
        labels_needed: estimate of the labels that would do; None if feasible, or if none would.
        test_risk: error among the test rows answered locally; None when there are none.
        test_risk_ci: its Wilson interval; None likewise.
        test_accepted: test rows answered locally.
    """

    alpha: float
    delta: float
    n: int
    feasible: bool
    coverage: float
    threshold: float | None
    labels_needed: int | None
    test_risk: float | None
    test_risk_ci: Interval | None
    test_accepted: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One test row to look at.

    Arguments:
        text: the input.
        domain: where it comes from.
        label: what people said.
        answer: what the cascade said.
        source: who answered: ``"device"`` or the name of a tier.
        confidence: the device's calibrated confidence, or None where there is none.
        reasons: why it went that way.
    """

    text: str
    domain: str
    label: str
    answer: str
    source: str
    confidence: float | None
    reasons: tuple[str, ...]

    @property
    def correct(self) -> bool:
        """Whether the answer is people's."""
        return self.answer == self.label


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of the run and its wall time in seconds."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens read and written by a tier."""

    tier: str
    input_usd: float
    output_usd: float


@dataclass(frozen=True, slots=True)
class Prices:
    """An illustrative price list; ``label`` says whose or what it resembles."""

    label: str
    tiers: tuple[Price, ...]


@dataclass(frozen=True, slots=True)
class Data:
    """Which sentences were used.

    Arguments:
        source: where they come from, e.g. a package and its version.
        develop, certify, test: rows of each part.
        neutral_dropped: sentences left out because people rated them near zero.
        neutral_below: how near: the least distance from zero of a kept mean rating.
    """

    source: str
    develop: int
    certify: int
    test: int
    neutral_dropped: int
    neutral_below: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Everything that a run found.

    Arguments:
        device, cascade, cloud: the three arms on the same test rows.
        difference: accuracy of the cascade minus the device's, paired.
        certificate: the guarantee on local answers.
        cloud_error, cloud_error_ci: error of the cloud alone on the test part.
        curve: deferral curve of the test part.
        calibration_ece: ECE of the device's confidences on the test part, ten bins.
        device_model, cloud_model: names.
        data: which sentences.
        prices: what the costs are computed from.
        samples: rows to look at.
        phases: in the order in which they ran.
    """

    device: ArmResult
    cascade: ArmResult
    cloud: ArmResult
    difference: PairedDifference
    certificate: CertificateResult
    cloud_error: float
    cloud_error_ci: Interval
    curve: DeferralCurve
    calibration_ece: float
    device_model: str
    cloud_model: str
    data: Data
    prices: Prices
    samples: tuple[Sample, ...]
    phases: tuple[Phase, ...]


def to_json(result: DemoResult) -> dict[str, object]:
    """The result as JSON values: ``device``, ``cascade``, ``cloud``, ``certificate`` and more.

    Unknown figures are null, never NaN.
    """
    curve = result.curve
    return {
        "device": asdict(result.device),
        "cascade": asdict(result.cascade),
        "cloud": asdict(result.cloud),
        "certificate": asdict(result.certificate),
        "difference": asdict(result.difference),
        "cloud_error": result.cloud_error,
        "cloud_error_ci": result.cloud_error_ci,
        "calibration_ece": result.calibration_ece,
        "deferral": {
            "share_escalated": curve.share.tolist(),
            "accuracy": curve.accuracy.tolist(),
            "random": curve.random.tolist(),
            "oracle": curve.oracle.tolist(),
            "auc": curve.auc,
            "normalised_auc": curve.normalised_auc,
        },
        "models": {"device": result.device_model, "cloud": result.cloud_model},
        "data": asdict(result.data),
        "prices": asdict(result.prices),
        "samples": [asdict(row) | {"correct": row.correct} for row in result.samples],
        "phases": [asdict(phase) for phase in result.phases],
    }
