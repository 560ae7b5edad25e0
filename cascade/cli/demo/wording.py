"""The demo's table and its sentences, shared by terminal and page, so that both say the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cascade.cli.demo.results import ArmResult, CertificateResult, DemoResult
from cascade.report.reading import duration, interval, money, percent, signed


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what it is, and the cell of each arm."""

    name: str
    cells: tuple[str, str, str]


ARMS = ("device only", "cascade", "cloud only")


def table_rows(result: DemoResult) -> tuple[Row, ...]:
    """The table of the three arms, one row a figure."""
    arms = (result.device, result.cascade, result.cloud)

    def row(name: str, show: Callable[[ArmResult], str]) -> Row:
        return Row(name, (show(arms[0]), show(arms[1]), show(arms[2])))

    return (
        row("accuracy", lambda arm: percent(arm.accuracy)),
        row("95 % interval (Wilson)", lambda arm: interval(arm.accuracy_ci)),
        row("answered on the device", lambda arm: percent(arm.local_share)),
        row("latency, median", lambda arm: duration(arm.p50_ms)),
        row("latency, 95th percentile", lambda arm: duration(arm.p95_ms)),
        row("bytes sent, mean", lambda arm: f"{arm.bytes_up:,.0f}"),
        row("cloud tokens, mean", lambda arm: f"{arm.cloud_tokens:,.1f}"),
        row("cost of 1,000 requests*", lambda arm: money(1000 * arm.cost_usd)),
    )


def difference(result: DemoResult) -> str:
    """The paired difference in one line."""
    points = 100 * result.difference.difference
    low, high = (100 * end for end in result.difference.interval)
    return (
        f"cascade − device: {signed(points)} points of accuracy "
        f"(95 % interval {signed(low)} to {signed(high)}, paired, n = {result.difference.n})"
    )


def certified(certificate: CertificateResult) -> str:
    """What was certified, or that nothing could be."""
    target = (
        f"at most {percent(certificate.alpha, 0)} of the device's answers wrong, "
        f"with {percent(1 - certificate.delta, 0)} certainty"
    )
    rows = f"{certificate.n:,} labelled sentences"
    if certificate.feasible:
        return (
            f"{target}: certified on {rows}, of which the device may answer "
            f"{percent(certificate.coverage)} (confidence of at least {certificate.threshold:.3f})"
        )
    if certificate.labels_needed is None:
        advice = "more labels would not help, for too many of its answers are wrong"
    else:
        advice = f"it would take about {certificate.labels_needed:,} labels"
    return f"{target}: not feasible on {rows}, so everything was escalated; {advice}"


def observed(certificate: CertificateResult) -> str:
    """What the test part showed of it."""
    if certificate.test_risk is None or certificate.test_risk_ci is None:
        return "no test sentence was answered on the device, so there is no error to show"
    return (
        f"{percent(certificate.test_risk)} of the {certificate.test_accepted} test sentences that "
        f"the device answered were wrong (95 % interval {interval(certificate.test_risk_ci)})"
    )


def cloud_error(result: DemoResult) -> str:
    """The error of the cloud alone, to compare alpha with."""
    return (
        f"the cloud's own error on the test part is {percent(result.cloud_error)} "
        f"(95 % interval {interval(result.cloud_error_ci)})"
    )


def prices(result: DemoResult) -> str:
    """What the costs are computed from."""
    tiers = "; ".join(
        f"{tier.tier} ${tier.input_usd:g} read, ${tier.output_usd:g} written"
        for tier in result.prices.tiers
    )
    return f"{result.prices.label}, US dollars for a million tokens: {tiers}; the device is free"


def dropped(result: DemoResult) -> str:
    """Which sentences were left out."""
    data = result.data
    return (
        f"left out: {data.neutral_dropped:,} sentences that people rated within "
        f"±{data.neutral_below:.1f} of neutral"
    )
